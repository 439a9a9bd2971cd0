"""Encoders' answers: what is computed from the engine's vectors, and that /openapi.json describes it."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.checkpoint.encoders import EncoderConfig
from app.checkpoint.sentence_transformers import Modules
from app.core.request import FinishReason
from app.core.wire import PredictCommand, RequestOutput
from tests.api.conftest import Server, start_server
from tests.api.test_document import _check


def count_letters(command: PredictCommand) -> list[RequestOutput]:
    """The engine's part: how many a and how many b a text has. Its token ids are its bytes."""
    text = bytes(command.token_ids)
    vector = np.array([text.count(b"a"), text.count(b"b")], np.float32)
    request_id, stop = command.request_id, FinishReason.STOP
    return [RequestOutput(request_id=request_id, token_ids=[], finish_reason=stop, vector=vector.tobytes())]


def serving(folder: Path, encoder: EncoderConfig) -> Iterator[Server]:
    for server in start_server(folder, encoder):
        server.engine.script = count_letters
        yield server


@pytest.fixture(scope="module")
def embedder(model_folder: Path) -> Iterator[Server]:
    yield from serving(model_folder, EncoderConfig("embed", 256))


@pytest.fixture(scope="module")
def classifier(model_folder: Path) -> Iterator[Server]:
    yield from serving(model_folder, EncoderConfig("classify", 256, labels=("many a", "many b")))


def ask(server: Server, path: str, body: Any) -> Any:
    """The answer, once the document has allowed it."""
    answer = server.post(path, body)
    _check(server.get("/openapi.json").json(), answer, 200)
    return answer.json()


def test_embeddings_have_length_one(embedder: Server) -> None:
    answer = ask(embedder, "/v1/embeddings", {"input": ["aaabbbb", "b"]})
    assert [item["embedding"] for item in answer["data"]] == [pytest.approx([0.6, 0.8]), [0.0, 1.0]]
    assert answer["usage"]["prompt_tokens"] == 8
    answer = ask(embedder, "/v1/embeddings", {"input": ["aaabbbb"], "dimensions": 1})
    assert answer["data"][0]["embedding"] == [1.0]
    answer = ask(embedder, "/v1/embeddings", {"input": ["aaabbbb"], "encoding_format": "base64"})
    vector = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), np.float32)
    np.testing.assert_allclose(vector, [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_scores_of_an_embedder_are_cosines(embedder: Server, path: str) -> None:
    answer = ask(embedder, path, {"text_1": "a", "text_2": ["b", "aaabbbb", "aa"]})
    assert [item["score"] for item in answer["data"]] == pytest.approx([0.0, 0.6, 1.0])


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_come_by_their_scores(embedder: Server, path: str) -> None:
    body = {"query": "a", "documents": ["b", "aa", "aaabbbb"]}
    results = ask(embedder, path, body)["results"]
    assert [(result["index"], result["document"]) for result in results] == [
        (1, {"text": "aa"}), (2, {"text": "aaabbbb"}), (0, {"text": "b"}),
    ]  # fmt: skip
    assert [result["relevance_score"] for result in results] == pytest.approx([1.0, 0.6, 0.0])
    (best,) = ask(embedder, path, {**body, "top_n": 1, "return_documents": False})["results"]
    assert (best["index"], "document" in best) == (1, False)


@pytest.mark.parametrize("path", ["/v1/classify", "/classify"])
def test_a_text_gets_the_label_of_its_largest_logit(classifier: Server, path: str) -> None:
    first, second = ask(classifier, path, {"input": ["abb", "a"]})["data"]
    assert (first["label"], second["label"]) == ("many b", "many a")
    assert first["probs"] == pytest.approx([1 / (1 + np.e), np.e / (1 + np.e)])


def test_a_prompt_stands_in_front_of_texts_and_not_of_token_ids(model_folder: Path) -> None:
    modules = Modules(includes_prompt=False, normalizes=False)
    for server in serving(model_folder, EncoderConfig("embed", 256, modules, prompt="aa: ", lowercases=True)):
        ignored = []

        def count(command: PredictCommand, ignored: list[int] = ignored) -> list[RequestOutput]:
            ignored.append(command.num_ignored)
            return count_letters(command)

        server.engine.script = count
        answer = ask(server, "/v1/embeddings", {"input": ["Bab", "a"]})
        assert [item["embedding"] for item in answer["data"]] == [[3.0, 2.0], [3.0, 0.0]]
        assert answer["usage"]["prompt_tokens"] == 12
        answer = ask(server, "/v1/embeddings", {"input": list(b"ab")})
        assert answer["data"][0]["embedding"] == [1.0, 1.0]
        ask(server, "/v1/embeddings", {"input": "b", "truncate_prompt_tokens": 3})
        assert ignored == [4, 4, 0, 2]


@pytest.mark.parametrize(("activation", "expected"), [("Identity", [2.0, -1.0]), ("Sigmoid", [0.880797, 0.268941])])
def test_the_scores_of_a_cross_encoder_have_its_activation(
    model_folder: Path, activation: Any, expected: list[float]
) -> None:
    def logit(command: PredictCommand) -> list[RequestOutput]:
        (counted,) = count_letters(command)
        a, b = np.frombuffer(counted.vector, np.float32)
        counted.vector = np.array([a - b], np.float32).tobytes()
        return [counted]

    for server in serving(model_folder, EncoderConfig("classify", 256, labels=("good",), activation=activation)):
        server.engine.script = logit
        answer = ask(server, "/v1/score", {"text_1": "x", "text_2": ["aa", "b"]})
        assert [item["score"] for item in answer["data"]] == pytest.approx(expected, rel=1e-5)
