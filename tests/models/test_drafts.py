"""Drafts change no text: with them, a crowd gets the tokens and probabilities that it gets without."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch

from app.core.request import Request
from app.core.sampling import SamplingParams
from app.core.step import BY_MODEL, SchedulerOutput
from app.core.wire import RequestOutput
from app.engine.ngram import NgramProposer
from app.engine.speculation import Speculation
from app.grammar import constraint
from app.kernels.cpu import integer
from app.settings import Settings
from tests.models.families import DECODER, GENERIC, VOCAB_SIZE, write_checkpoint
from tests.models.test_oracle import (
    make_engine,
    make_requests,
    resume,
    run_crowd,
    tiny_settings,
    tokens_of,
    write_tokenizer,
)

BUDGET = 24
MIXED = ("wrong", "random")
"""Kinds of drafts of which none, some or all of a step's are right."""
Requests = dict[str, tuple[list[int], SamplingParams]]


class Eager(Speculation):
    """Drafts as long as there is room, whatever they cost: of a proposer, or of somebody who knows what will come."""

    def __init__(self, kind: str, texts: dict[str, list[int]], budget: int = BUDGET) -> None:
        super().__init__(NgramProposer(), budget)
        self.num_steps = self.num_with_drafts = 0
        self._kind, self._texts = kind, texts
        self._chance = random.Random(0)

    def choose(self, requests: Sequence[Request]) -> dict[str, list[int]]:
        """See `Speculation.choose`."""
        chosen, left = {}, self._most_tokens - len(requests)
        for request in requests:
            most = min(left, self._chance.randrange(9), request.max_num_tokens - len(request.token_ids) - 1)
            if most > 0 and (drafts := self._drafts(request, most)):
                chosen[request.request_id] = drafts
                left -= len(drafts)
        return chosen

    def _drafts(self, request: Request, most: int) -> list[int]:
        coming = self._texts[request.request_id][request.num_output_tokens :][:most]
        if self._kind == "draft model":
            return [BY_MODEL] * most
        if self._kind == "n-grams":
            return self._proposer.propose(request, most).token_ids
        if self._kind == "right":
            return coming
        if self._kind == "wrong":
            return [(token + 1) % VOCAB_SIZE for token in coming]
        return [token if self._chance.random() < 0.7 else self._chance.randrange(VOCAB_SIZE) for token in coming]

    def is_worth_waiting(self, requests: Sequence[Request]) -> bool:
        """See `Speculation.is_worth_waiting`."""
        return bool(requests) and self._chance.random() < 0.8

    def observe(self, step: SchedulerOutput, seconds: float) -> None:
        """See `Speculation.observe`."""
        super().observe(step, seconds)
        self.num_steps += 1
        self.num_with_drafts += bool(step.drafts)


def varied(count: int) -> Requests:
    """Requests of many kinds: with filters, bias, penalties, a grammar, a minimal length, and with probabilities."""
    options: list[dict[str, object]] = [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 20},
        {"top_p": 0.9, "min_p": 0.02},
        {"temperature": 1.0, "logit_bias": {5: 4.0, 9: -3.0}},
        {"temperature": 0.0, "stop_token_ids": frozenset(range(0, VOCAB_SIZE, 40))},
        {"frequency_penalty": 0.7, "repetition_penalty": 1.2},
        {"grammar": constraint.regex("[a-f]{10,}!?"), "stop_token_ids": frozenset([VOCAB_SIZE - 1])},
        {"min_tokens": 5, "stop_token_ids": frozenset(range(VOCAB_SIZE // 2))},
    ]
    requests = make_requests(count)
    for index, (name, (prompt, sampling)) in enumerate(requests.items()):
        changed = msgspec.structs.replace(sampling, **options[index % len(options)])
        logprobs = 1 if index % 3 == 0 else None
        requests[name] = prompt, msgspec.structs.replace(changed, logprobs=logprobs, prompt_logprobs=logprobs)
    return requests


def probabilities(outputs: list[RequestOutput]) -> list[float]:
    """Of the tokens of prompt and output."""
    return [one.logprobs[0] for output in outputs for one in (*output.prompt_logprobs, *output.logprobs)]


def check(
    folder: Path,
    requests: Requests,
    settings: Settings,
    overlap: bool = True,
    kinds: Sequence[str] = ("right", "wrong", "random", "n-grams"),
) -> dict[str, int]:
    """Compare kinds of drafts with none; returns how many steps each took."""
    core = make_engine(folder, settings, overlap)
    expected, _ = run_crowd(core, requests)
    texts = {name: tokens_of(news) for name, news in expected.items()}
    num_steps = {}
    for kind in ("none", *kinds):
        core.scheduler.speculation = speculation = Eager(kind, texts)
        if kind == "none":
            speculation.choose = lambda _requests: {}  # type: ignore[method-assign]
        outputs, preemptions = run_crowd(core, requests, seed=1)
        assert preemptions > 0 or kind != "none"
        for name, text in texts.items():
            assert tokens_of(outputs[name]) == text, (kind, name)
            assert probabilities(outputs[name]) == pytest.approx(probabilities(expected[name]), abs=3e-5)
        drafted, accepted = (
            sum(getattr(news, name) for outputs_of in outputs.values() for news in outputs_of)
            for name in ("num_drafted_tokens", "num_accepted_tokens")
        )
        assert (drafted > 0) == (kind != "none")
        if kind in ("right", "wrong"):
            assert accepted == (drafted if kind == "right" else 0)
        num_steps[kind] = speculation.num_steps
        assert bool(speculation.num_with_drafts) == (kind != "none")
    return num_steps


@pytest.mark.parametrize("overlap", [True, False])
def test_all_kinds_of_requests(overlap: bool, tmp_path: Path) -> None:
    write_checkpoint("Llama", DECODER["Llama"], tmp_path)
    write_tokenizer(tmp_path)
    num_steps = check(tmp_path, varied(16), tiny_settings(), overlap)
    assert num_steps["right"] < 0.9 * num_steps["none"]


def test_a_prompts_last_token_has_drafts_while_those_before_it_are_computed(tmp_path: Path) -> None:
    write_checkpoint("Llama", DECODER["Llama"], tmp_path)
    write_tokenizer(tmp_path)
    for length in (25, 49):  # a step has 24 tokens
        requests = {"a": (list(range(5, 5 + length)), SamplingParams(max_tokens=12, seed=0))}
        core = make_engine(tmp_path, tiny_settings())
        texts = {"a": tokens_of(run_crowd(core, requests)[0]["a"])}
        core = make_engine(tmp_path, tiny_settings())
        core.scheduler.speculation = Eager("right", texts)
        assert tokens_of(run_crowd(core, requests)[0]["a"]) == texts["a"]


@pytest.mark.parametrize("kind", ["right", "random", "n-grams"])
def test_two_engines_that_die_change_no_text(kind: str, tmp_path: Path) -> None:
    """The next one goes on behind what was told, in the middle of a step with drafts."""
    write_checkpoint("Llama", DECODER["Llama"], tmp_path)
    write_tokenizer(tmp_path)
    requests = {
        name: (prompt, msgspec.structs.replace(sampling, prompt_logprobs=None))
        for name, (prompt, sampling) in varied(8).items()
    }
    plain, _ = run_crowd(make_engine(tmp_path, tiny_settings()), requests)
    texts = {name: tokens_of(outputs) for name, outputs in plain.items()}
    told: dict[str, list[int]] = {name: [] for name in requests}
    left = set(requests)
    for most_with_drafts in (3, 3, 1000):
        core = make_engine(tmp_path, tiny_settings())
        core.scheduler.speculation = speculation = Eager(kind, texts)
        for name in sorted(left):
            resume(core, name, requests[name], told[name])
        while speculation.num_with_drafts < most_with_drafts and (core.admit_prepared() or core.has_work):
            for output in core.step().outputs:
                told[output.request_id] += output.token_ids
                left -= {output.request_id} if output.finish_reason else set()
        assert bool(left) == (most_with_drafts < 1000)
    assert told == texts


def test_tokens_are_as_frequent_as_the_model_says(tmp_path: Path) -> None:
    """Pearson's test of pairs of tokens, of which the second one has drafts: most are right."""
    model = write_checkpoint("Llama", DECODER["Llama"], tmp_path)
    write_tokenizer(tmp_path)
    core, prompt, count = make_engine(tmp_path, tiny_settings()), [5, 6, 7, 8], 500
    requests = {
        str(seed): (prompt, SamplingParams(max_tokens=3, seed=seed, temperature=0.8, top_k=4)) for seed in range(count)
    }
    texts = {name: tokens_of(outputs) for name, outputs in run_crowd(core, requests)[0].items()}
    core.scheduler.speculation = speculation = Eager("random", texts)
    outputs, _ = run_crowd(core, requests, seed=1)
    assert speculation.num_with_drafts > count / 16
    found = Counter(tuple(tokens_of(news)[:2]) for news in outputs.values())

    def chances(tokens: list[int]) -> dict[int, float]:
        with torch.inference_mode():
            best = (model(torch.tensor([tokens])).logits[0, -1].double() / 0.8).topk(4)
        return dict(zip(best.indices.tolist(), best.values.softmax(0).tolist(), strict=True))

    expected = {
        (first, second): count * chance * of_second
        for first, chance in chances(prompt).items()
        for second, of_second in chances([*prompt, first]).items()
    }
    assert found.keys() <= expected.keys()
    assert min(expected.values()) > 5
    deviation = sum((found[pair] - wanted) ** 2 / wanted for pair, wanted in expected.items())
    assert deviation < 44.3  # one in ten thousand is larger, with 15 degrees of freedom


@pytest.mark.parametrize(
    ("family", "is_same"), [("Llama", True), ("Llama", False), ("Qwen2", False), ("GPTNeoX", False)]
)
def test_drafts_of_a_model(family: str, is_same: bool, tmp_path: Path) -> None:
    """One with the same weights guesses right wherever a row may have drafts, at any temperature."""
    target, draft = tmp_path / "target", tmp_path / "draft"
    for folder in (target, draft):
        folder.mkdir()
    write_checkpoint("Llama", DECODER["Llama"], target)
    if is_same:
        write_checkpoint("Llama", DECODER["Llama"], draft)
    else:
        write_checkpoint(
            family, (DECODER | GENERIC)[family] | {"num_hidden_layers": 1, "vocab_size": VOCAB_SIZE}, draft
        )
    for folder in (target, draft):
        write_tokenizer(folder)
    num_steps = check(target, varied(16), tiny_settings(draft_model=str(draft)), kinds=["draft model", "right"])
    if is_same:
        assert num_steps["draft model"] < 0.95 * num_steps["none"], num_steps  # after prompts were seen in pieces


@pytest.mark.parametrize("padding", [0, 11])
def test_a_vocabulary_with_other_padding(padding: int, tmp_path: Path) -> None:
    """Either model may have tokens that no text has. Both of these have random weights, so they draw them."""
    for name, size in (("target", VOCAB_SIZE + padding), ("draft", VOCAB_SIZE + 11 - padding)):
        (tmp_path / name).mkdir()
        write_checkpoint("Llama", DECODER["Llama"] | {"vocab_size": size}, tmp_path / name)
        write_tokenizer(tmp_path / name)
    requests = make_requests(16, temperature=0.0) if padding else varied(16)
    check(tmp_path / "target", requests, tiny_settings(draft_model=str(tmp_path / "draft")), kinds=["draft model"])


@pytest.mark.parametrize(("family", "backend"), [("Gemma3Text", "cpu"), ("Qwen2", "torch")])
def test_windows(family: str, backend: str, tmp_path: Path) -> None:
    write_checkpoint(family, DECODER[family], tmp_path)
    check(tmp_path, make_requests(14, temperature=0.0), tiny_settings(attention_backend=backend), kinds=MIXED)


@pytest.mark.skipif(not integer.lanes(), reason="the processor has no AVX2")
def test_weights_in_8_bits_and_bfloat16(tmp_path: Path) -> None:
    """With what is the default for a quantized model on a CPU, equality is exact there, too."""
    write_checkpoint("Llama", DECODER["Llama"], tmp_path)
    write_tokenizer(tmp_path)
    settings = tiny_settings(quantization="int8").model_copy(update={"dtype": "bfloat16"})
    check(tmp_path, varied(16), settings, kinds=MIXED)
