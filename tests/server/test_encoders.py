"""An encoder in a real process behind a real socket, through OpenAI's client."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModel

from app.checkpoint.byte_alphabet import byte_alphabet
from tests import web
from tests.server.examples import check_examples
from tests.server.process import Server, running_server
from tests.worker.test_encoder_runner import write_encoder
from tests.worker.test_predictors import write_decoder

CLS, SEP = 256, 257


def write_tokenizer(folder: Path) -> None:
    """Tokens that are bytes, between two special ones."""
    vocabulary = byte_alphabet() | {"[CLS]": CLS, "[SEP]": SEP}
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(["[CLS]", "[SEP]"])
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    fast.save(str(folder / "tokenizer.json"))
    told = {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    folder = tmp_path_factory.mktemp("embedder")
    write_encoder(folder, "Bert", "Model", vocab_size=258)
    write_tokenizer(folder)
    with running_server("--model", str(folder), "--request-limits", '{"max_inputs": 1000}') as server:
        yield server, folder


def expected(folder: Path, text: str) -> np.ndarray:
    """transformers' hidden states of one text, their mean, of length 1."""
    ids = torch.tensor([[CLS, *text.encode(), SEP]])
    with torch.inference_mode():
        mean = AutoModel.from_pretrained(folder).eval()(input_ids=ids).last_hidden_state[0].mean(0)
    return (mean / mean.norm()).numpy()


def test_embeddings_are_those_of_transformers_in_order(embedder: tuple[Server, Path]) -> None:
    server, folder = embedder
    texts = [f"{'word ' * (index % 9)}{index}" for index in range(600)]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        answer = client.embeddings.create(model=client.models.list().data[0].id, input=texts)
        assert [item.index for item in answer.data] == list(range(600))
        assert answer.usage.prompt_tokens == sum(len(text.encode()) + 2 for text in texts)
        for index in (0, 8, 599):
            np.testing.assert_allclose(answer.data[index].embedding, expected(folder, texts[index]), atol=1e-5)
        model = answer.model
        for given in (texts[8], [CLS, *texts[8].encode(), SEP], [[CLS, *texts[8].encode(), SEP]]):
            one = client.embeddings.create(model=model, input=given, encoding_format="float")
            np.testing.assert_allclose(one.data[0].embedding, answer.data[8].embedding, atol=1e-6)
        short = client.embeddings.create(model=model, input=texts[8], dimensions=5).data[0].embedding
        head = np.array(answer.data[8].embedding[:5])
        np.testing.assert_allclose(short, head / np.linalg.norm(head), atol=1e-6)
        cut = client.embeddings.create(model=model, input="x" * 500, extra_body={"truncate_prompt_tokens": -1})
        assert cut.usage.prompt_tokens == 70


def test_examples(embedder: tuple[Server, Path]) -> None:
    check_examples(embedder[0].url, "docs/encoders.md: Embeddings", "docs/api.md: Encoders")


def test_scores_are_cosines(embedder: tuple[Server, Path]) -> None:
    server, folder = embedder
    one, other = expected(folder, "cat"), expected(folder, "dog")
    answer = web.post(f"{server.url}/v1/score", json={"text_1": "cat", "text_2": ["dog", "cat"]}).json()
    np.testing.assert_allclose([item["score"] for item in answer["data"]], [one @ other, 1.0], atol=1e-5)
    body = {"query": "cat", "documents": ["dog", {"text": "cat"}], "top_n": 1}
    (best,) = web.post(f"{server.url}/rerank", json=body).json()["results"]
    assert (best["index"], best["document"]) == (1, {"text": "cat"})


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": [[]]}, "input"),
        ("/v1/embeddings", {"input": ["a", "x" * 100]}, "input[1]"),
        ("/v1/embeddings", {"input": [[300]]}, "input"),
        ("/v1/embeddings", {"input": ["a"] * 1001}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 33}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 71}, "truncate_prompt_tokens"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_2"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/classify", {"input": "a"}, "model"),
        ("/v1/completions", {"prompt": "a"}, "model"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "model"),
    ],
)
def test_what_is_wrong_is_named(embedder: tuple[Server, Path], path: str, body: dict[str, object], param: str) -> None:
    answer = web.post(f"{embedder[0].url}{path}", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_classifier_ranks_pairs_and_names_labels(tmp_path: Path) -> None:
    oracle = write_encoder(tmp_path, "Bert", "ForSequenceClassification", vocab_size=258, num_labels=1)
    write_tokenizer(tmp_path)
    with running_server("--model", str(tmp_path)) as server:
        body = {"query": "ab", "documents": ["c", "defg"]}
        results = web.post(f"{server.url}/v1/rerank", json=body).json()["results"]
        label = web.post(f"{server.url}/v1/classify", json={"input": "ab"}).json()["data"][0]
        metrics = web.get(f"{server.url}/metrics").text
    scores = {}
    for index, text in enumerate([b"c", b"defg"]):
        ids = torch.tensor([[CLS, *b"ab", SEP, *text, SEP]])
        types = torch.tensor([[0] * 4 + [1] * (len(text) + 1)])
        with torch.inference_mode():
            scores[index] = torch.sigmoid(oracle(input_ids=ids, token_type_ids=types).logits[0, 0]).item()
    assert [result["index"] for result in results] == sorted(scores, key=lambda index: -scores[index])
    for result in results:
        assert result["relevance_score"] == pytest.approx(scores[result["index"]], abs=1e-5)
    assert (label["label"], label["num_classes"]) == ("LABEL_0", 1)
    assert 'paceline_request_success_total{finished_reason="stop"} 3.0' in metrics
    assert "paceline_request_queue_time_seconds_count 3.0" in metrics


def test_a_judge_ranks_by_the_probability_of_yes(tmp_path: Path) -> None:
    oracle = write_decoder(tmp_path, "Qwen3", "ForCausalLM", vocab_size=300, max_position_embeddings=600)
    write_tokenizer(tmp_path)
    fast = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    fast.add_tokens(["yes", "no"])
    fast.save(str(tmp_path / "tokenizer.json"))
    documents = ["a cat " * count for count in (1, 2, 3, 5, 8, 13, 3, 1)] + ["a car"]
    with running_server("--model", str(tmp_path), "--task", "score", "--dtype", "float32") as server:
        body = {"query": "What purrs?", "documents": documents, "instruction": "Find it"}
        results = web.post(f"{server.url}/v1/rerank", json=body).json()["results"]
        check_examples(server.url, "docs/encoders.md: Rerankers that generate")
        tasks = web.get(f"{server.url}/v1/models").json()["data"][0]["tasks"]
    assert tasks == ["score"]
    assert len(results) == len(documents)
    for result in results:
        text = (
            "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that "
            'the answer can only be "yes" or "no".<Instruct>: Find it\n<Query>: What purrs?\n<Document>: '
        )
        ids = fast.encode(text + documents[result["index"]], add_special_tokens=False).ids
        with torch.inference_mode():
            logits = oracle(input_ids=torch.tensor([ids])).logits[
                0, -1, [fast.token_to_id("yes"), fast.token_to_id("no")]
            ]
        assert result["relevance_score"] == pytest.approx(logits.softmax(-1)[0].item(), abs=1e-5)


def test_entities_of_texts_of_several_lengths(tmp_path: Path) -> None:
    names = {0: "O", 1: "B-PER", 2: "I-PER", 3: "LOC"}
    oracle = write_encoder(tmp_path, "Bert", "ForTokenClassification", vocab_size=258, id2label=names)
    write_tokenizer(tmp_path)
    texts = ["Ada", "London and Paris", "x" * 40, "Ada lives in London."]
    with running_server("--model", str(tmp_path)) as server:
        data = web.post(f"{server.url}/v1/classify", json={"input": texts}).json()["data"]
        check_examples(server.url, "docs/encoders.md: Entities")
    for text, one in zip(texts, data, strict=True):
        with torch.inference_mode():
            logits = oracle(input_ids=torch.tensor([[CLS, *text.encode(), SEP]])).logits[0, 1:-1]
        probs = logits.softmax(-1)
        for entity in one["entities"]:
            assert entity["text"] == text[entity["start"] : entity["end"]]
            of_tokens = probs[entity["start"] : entity["end"]]
            assert {names[at].removeprefix("B-").removeprefix("I-") for at in of_tokens.argmax(-1).tolist()} == {
                entity["label"]
            }
            assert entity["score"] == pytest.approx(of_tokens.amax(-1).mean().item(), abs=1e-5)
        covered = {at for entity in one["entities"] for at in range(entity["start"], entity["end"])}
        assert covered == {at for at, best in enumerate(probs.argmax(-1).tolist()) if best}
