"""A server with an encoder-decoder: completions of what the encoder has read."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from tokenizers.implementations import ByteLevelBPETokenizer
from transformers import GenerationMixin, PreTrainedModel

from tests import web
from tests.models.encoder_decoders import write_encoder_decoder
from tests.server.process import Server, running_server

END, ENGLISH, FRENCH = 2, 160, 161


def write_tokenizer(folder: Path) -> None:
    """Letters are tokens; a text is between the token of its language and that of its end, as NLLB has it."""
    letters = {chr(97 + at): 3 + at for at in range(26)}
    fast = ByteLevelBPETokenizer(vocab=letters | {f"unused{at}": at for at in (*range(3), *range(29, 160))}, merges=[])
    fast.add_special_tokens(["eng_Latn", "fra_Latn"])
    fast.post_processor = processors.TemplateProcessing(
        single="eng_Latn $A unused2", special_tokens=[("eng_Latn", ENGLISH), ("unused2", END)]
    )
    fast.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, PreTrainedModel]]:
    folder = tmp_path_factory.mktemp("translator")
    model = write_encoder_decoder("M2M100", folder, no_repeat_ngram_size=2)
    write_tokenizer(folder)
    with running_server("--model", str(folder), "--dtype", "float32", "--cpu-threads", "1") as server:
        yield server, model


def expected(model: PreTrainedModel, source: list[int], beginning: list[int], count: int) -> list[int]:
    """transformers' most probable text."""
    ids, start = torch.tensor([source]), torch.tensor([beginning])
    options = {"max_new_tokens": count, "do_sample": False, "use_cache": False, "forced_eos_token_id": None}
    tokens = GenerationMixin.generate(model, ids, decoder_input_ids=start, **options, no_repeat_ngram_size=2)[0]
    return tokens.tolist()[len(beginning) :]


def names(server: Server, tokens: list[int]) -> list[str]:
    return [server.post("/detokenize", {"tokens": [token]}).json()["prompt"] for token in tokens]


def test_completions_are_those_of_transformers(translator: tuple[Server, PreTrainedModel]) -> None:
    server, model = translator
    asked = {"max_tokens": 12, "temperature": 0, "logprobs": 1}
    answer = server.post("/v1/completions", {"prompt": ["hello", "ab"], **asked}).json()
    sources = [[ENGLISH, *(ord(letter) - 94 for letter in text), END] for text in ("hello", "ab")]
    for choice, source in zip(answer["choices"], sources, strict=True):
        assert choice["logprobs"]["tokens"] == names(server, expected(model, source, [2], 12))
    assert answer["usage"]["prompt_tokens"] == 7 + 4
    french = {"source_language": "fra_Latn", "target_language": "fra_Latn"}
    answer = server.post("/v1/completions", {"prompt": "hello", **asked, **french}).json()
    tokens = expected(model, [FRENCH, *sources[0][1:]], [2, FRENCH], 12)
    assert answer["choices"][0]["logprobs"]["tokens"] == names(server, tokens)


def test_a_stream_survives_its_engine(translator: tuple[Server, PreTrainedModel]) -> None:
    server, _ = translator
    body = {"prompt": "abc", "max_tokens": 150, "n": 3, "seed": 3, "ignore_eos": True, "logprobs": 0}
    whole = server.post("/v1/completions", body).json()
    said: dict[int, list[str]] = {}
    with web.stream("POST", f"{server.url}/v1/completions", json=body | {"stream": True}) as lines:
        for line in lines.iter_lines():
            if line.startswith("data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                said.setdefault(choice["index"], []).extend((choice["logprobs"] or {"tokens": []})["tokens"])
                if sum(map(len, said.values())) == 9:
                    os.kill(server.children()["engine"], signal.SIGKILL)
    assert [said[index] for index in range(3)] == [choice["logprobs"]["tokens"] for choice in whole["choices"]]
    assert said[0] != said[1]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("echo", True, "encoder reads the prompt"),
        ("suffix", "x", "suffix"),
        ("use_beam_search", True, "use_beam_search"),
        ("target_language", "deu_Latn", "no token for the language deu_Latn"),
        ("prompt", "a" * 300, "encoder reads 200 tokens at most"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    field: str, value: object, reason: str, translator: tuple[Server, PreTrainedModel]
) -> None:
    answer = translator[0].post("/v1/completions", {"prompt": "a", field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert reason in answer.json()["error"]["message"]
