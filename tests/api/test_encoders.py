"""Encoders' answers: what is computed from the engine's vectors, and that /openapi.json describes it."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from app.checkpoint.encoders import EncoderConfig
from app.checkpoint.sentence_transformers import Modules
from app.core.request import FinishReason
from app.core.wire import PredictCommand, RequestOutput
from tests.api.conftest import Server, start_server, write_tokenizer
from tests.api.test_document import _check


def count_letters(command: PredictCommand) -> list[RequestOutput]:
    """The engine's part: how many a and how many b a text has. Its token ids are its bytes, or control tokens."""
    text = bytes(token for token in command.token_ids if token < 256)
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


def last(server: Server) -> Any:
    """The latest command that the engine has got."""
    return server.engine.last_command()


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


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        (
            EncoderConfig("embed", 256),
            [
                ("/v1/embeddings", {"input": "a", "use_activation": False}, "use_activation"),
                ("/v1/embeddings", {"input": "a", "instruction": "find"}, "instruction"),
                ("/v1/embeddings", {"input": "a", "prompt_name": "query"}, "prompt_name"),
                ("/v1/embeddings", {}, "input"),
                ("/v1/embeddings", {"input": "a", "messages": [{"role": "user", "content": "a"}]}, "input"),
                ("/v1/score", {"text_1": "a", "text_2": "b", "use_activation": False}, "use_activation"),
                ("/v1/score", {"text_1": "a", "text_2": "b", "instruction": "find"}, "instruction"),
            ],
        ),
        (
            EncoderConfig("token_classify", 256, labels=("O", "X")),
            [
                ("/v1/classify", {"input": [1, 2]}, "input"),
                ("/v1/classify", {"input": "a", "use_activation": False}, "use_activation"),
            ],
        ),
        (EncoderConfig("judge", 256), [("/v1/embeddings", {"input": "a"}, "model")]),
    ],
)
def test_what_a_model_cannot_do_is_named(
    model_folder: Path, config: EncoderConfig, asked: list[tuple[str, dict[str, Any], str]]
) -> None:
    for server in serving(model_folder, config):
        for path, body, field in asked:
            answer = server.post(path, body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text
        assert server.get("/v1/models").json()["data"][0]["tasks"] == list(config.tasks)


def test_images_are_refused_by_their_names_where_texts_are_read(embedder: Server) -> None:
    image, url = {"image": "data:image/png;base64,"}, {"type": "image_url", "image_url": {"url": "data:image/png"}}
    for given, field, why in (
        (image, "input", "and no images"),
        ([image], "input[0]", "and no images"),
        (["a", url], "input[1]", "and no images"),
        ([1, {"text": "a"}], "input[1]", "this is an object"),
        ([["a"], [1]], "input[0][0]", "valid integer"),
    ):
        answer = embedder.post("/v1/embeddings", {"input": given})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, field), error
        assert error["message"].startswith(f"{field}: ")
        assert why in error["message"]
    chat = {"messages": [{"role": "user", "content": [url]}]}
    assert "image_url" in embedder.post("/v1/embeddings", chat).json()["error"]["message"]


def test_normalisation_and_prompts_are_the_clients_choice(model_folder: Path) -> None:
    prompts = (("query", "Instruct: Find a\nQuery: "), ("document", "d: "))
    for server in serving(model_folder, EncoderConfig("embed", 256, Modules(normalizes=True), prompts=prompts)):
        counted = {"input": "aaabbbb", "normalize": False}
        for more, vector in (({}, [3, 4]), ({"dimensions": 1}, [3]), ({"normalize": True}, [0.6, 0.8])):
            answer = ask(server, "/v1/embeddings", counted | more)
            assert answer["data"][0]["embedding"] == pytest.approx(vector)
        read = []
        for more in ({}, {"prompt_name": "document"}, {"prompt_name": "query"}, {"instruction": "Find b"}):
            ask(server, "/v1/embeddings", {"input": "x", **more})
            read.append(bytes(last(server).token_ids).decode())
        assert read == ["x", "d: x", "Instruct: Find a\nQuery: x", "Instruct: Find b\nQuery: x"]


def test_a_chat_is_one_input(embedder: Server) -> None:
    ask(embedder, "/v1/embeddings", {"messages": [{"role": "user", "content": "a"}]})
    assert last(embedder).token_ids == [256, *b"user\na", 257, *b"\n"]
    body = {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": True}
    ask(embedder, "/v1/embeddings", body)
    assert last(embedder).token_ids == [256, *b"user\na", 257, *b"\n", 256, *b"assistant\n"]


def test_classes_and_scores_without_activation_are_logits(classifier: Server, model_folder: Path) -> None:
    (answer,) = ask(classifier, "/v1/classify", {"input": "abb", "use_activation": False})["data"]
    assert (answer["label"], answer["probs"]) == ("many b", [1.0, 2.0])
    for server in serving(model_folder, EncoderConfig("judge", 256)):
        server.engine.ready = structs.replace(server.engine.ready, max_model_len=1000)  # type: ignore[type-var]
        body = {"text_1": "", "text_2": "aab"}
        raw, score = (
            ask(server, "/v1/score", body | {"use_activation": activation})["data"][0]["score"]
            for activation in (False, True)
        )
        counted = np.frombuffer(count_letters(last(server))[0].vector, np.float32)
        assert raw == counted[0] - counted[1]
        assert score == pytest.approx(1 / (1 + np.exp(-raw)))


QUERY_AND_DOCUMENT = (
    "{% for m in messages %}{% if m.role in ('system', 'query', 'document') %}{{ m.role }}={{ m.content }};{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


def test_pairs_are_written_as_the_judge_was_trained(model_folder: Path, tmp_path: Path) -> None:
    """As the model card of Qwen3-Reranker writes them, or by a template that has roles for both."""
    body = {"query": "q<|im_end|>", "documents": ["d"]}
    for server in serving(model_folder, EncoderConfig("judge", 256)):
        server.engine.ready = structs.replace(server.engine.ready, max_model_len=1000)  # type: ignore[type-var]
        ask(server, "/v1/rerank", body)
        text = server.service.tokenizer.decode(last(server).token_ids, skip_special_tokens=False)
        assert text == (  # and what a client types is text
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given '
            "a web search query, retrieve relevant passages that answer the query\n<Query>: q<|im_end|>\n<Document>: "
            "d<|im_end|>\n<|im_start|>assistant\n"
        )
    write_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": QUERY_AND_DOCUMENT}))
    config = EncoderConfig("judge", 40, prompt="find", adds_generation_prompt=True)
    for server in serving(tmp_path, config):
        server.engine.ready = structs.replace(server.engine.ready, max_model_len=40)  # type: ignore[type-var]
        read = []
        for more in ({}, {"instruction": "look"}, {"documents": ["d" * 50], "truncate_prompt_tokens": -1},
                     {"documents": ["abcdef"], "max_tokens_per_doc": 3}):  # fmt: skip
            ask(server, "/v1/rerank", {"query": "q", "documents": ["d"]} | more)
            read.append(bytes(last(server).token_ids).decode())
        assert read[:2] == ["system=find;query=q;document=d;>", "system=look;query=q;document=d;>"]
        assert read[2] == f"system=find;query=q;document={'d' * 9};>"
        assert read[3] == "system=find;query=q;document=abc;>"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/classify"])
def test_a_model_that_generates_says_so_whatever_it_is_given(server: Server, path: str) -> None:
    image = {"image": "data:image/png;base64,"}
    for body in ({"json": {"input": [image]}}, {"files": {"image": b"\x89PNG"}}):
        answer = server.post(path, **body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
        assert "this model generates text" in answer.json()["error"]["message"]
