"""Steps as the GPU runs them: on a GPU where there is one, else in Triton's interpreter, with nothing recorded."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import PreTrainedModel

pytest.importorskip("triton")

from app.attention.backends import triton_paged
from app.core.sampling import SamplingParams
from app.core.wire import RequestOutput
from app.engine.chunk_pacer import ChunkPacer
from app.engine.core import EngineCore
from app.engine.kv_cache import KVCache
from app.engine.scheduler import Scheduler
from app.errors import ModelError, StartupError
from app.fairness.alone import Alone
from app.grammar import constraint
from app.kernels.gpu import invariant_attention
from app.settings import load_settings
from app.worker.factory import build_worker
from app.worker.graphs import decode_sizes, fitting, token_sizes
from tests.kernels.test_gpu import rounding
from tests.models.adapters import merged, write_adapter
from tests.models.families import DECODER, VOCAB_SIZE, write_checkpoint
from tests.models.test_drafts import Eager
from tests.models.test_oracle import (
    check_grammars,
    check_logprobs,
    greedy,
    make_requests,
    run_crowd,
    tokens_of,
    write_tokenizer,
)

__all__ = ["rounding"]  # a fixture that all tests use
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMITS = {"max_model_len": 48, "max_num_seqs": 4, "max_num_batched_tokens": 12}
BLOCK_SIZE, NUM_BLOCKS = 4, 12
pytestmark = [  # numpy's, in the interpreter
    pytest.mark.filterwarnings("ignore:overflow encountered"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered"),
]
Requests = dict[str, tuple[list[int], SamplingParams]]


@pytest.fixture(autouse=True)
def few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the past into two parts instead of sixteen, where no GPU runs them side by side: all but one are empty."""
    if DEVICE == "cpu":
        monkeypatch.setattr(triton_paged, "_MOST_SPLITS", 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("model")
    one_layer = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    oracle = write_checkpoint("Qwen3", DECODER["Qwen3"] | one_layer, folder)
    write_tokenizer(folder)
    return folder, oracle


def make_engine(folder: Path, backend: str, kv_dtype: str = "auto", **changes: Any) -> EngineCore:
    options = {"dtype": "float32", "num_kv_blocks": NUM_BLOCKS, **LIMITS} | changes
    settings = load_settings(
        device=DEVICE, attention_backend=backend, kv_dtype=kv_dtype, block_size=BLOCK_SIZE, **options
    )
    limits = {name: options[name] for name in LIMITS}
    pacer = ChunkPacer(1000.0, BLOCK_SIZE, limits["max_num_batched_tokens"])
    built = build_worker(settings, folder)
    kv = KVCache(built.limits.groups, BLOCK_SIZE, limits["max_num_batched_tokens"], states=built.limits.states)
    scheduler = Scheduler(kv, pacer, Alone(pacer), **limits)
    core = EngineCore(scheduler, built.worker, num_adapters=built.limits.num_adapters)
    for name, adapter in settings.lora.items():
        core.load_adapter(name, adapter).result()
    return core


def test_a_crowd_equals_transformers_alone(model: tuple[Path, PreTrainedModel]) -> None:
    folder, oracle = model
    plain = SamplingParams(max_tokens=8, seed=1, temperature=0.0)
    beginning = list(range(5, 14))
    requests: Requests = {
        "shares": ([*beginning, 14], plain),
        "its beginning": ([*beginning, 15, 16], msgspec.structs.replace(plain, logprobs=2, prompt_logprobs=1)),
        "shares, too": ([*beginning, 20], plain),
        "short": ([40], msgspec.structs.replace(plain, max_tokens=20)),
        "long": (list(range(60, 90)), plain),
    }
    outputs, preemptions = run_crowd(make_engine(folder, "triton"), requests)
    assert preemptions > 0
    assert any(output.num_cached_tokens for news in outputs.values() for output in news)
    for name, (prompt, sampling) in requests.items():
        said = tokens_of(outputs[name])
        assert said == greedy(oracle, prompt, said, sampling.max_tokens), name
        if sampling.logprobs is not None:
            check_logprobs(oracle, prompt, outputs[name])


def test_adapters_in_recorded_steps(model: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    """Steps with and without adapters are recorded apart; requests of all kinds follow one another and run together."""
    folder, oracle = model
    adapters = {name: write_adapter(oracle, tmp_path / name, seed) for seed, name in enumerate(("one", "two"))}
    models = {"": oracle} | {name: merged(oracle, path) for name, path in adapters.items()}
    few = {"max_model_len": 16, "max_num_seqs": 2, "max_num_batched_tokens": 4}  # and so few shapes
    core = make_engine(folder, "triton", lora={name: str(path) for name, path in adapters.items()}, **few)
    plain = SamplingParams(max_tokens=6, seed=1, temperature=0.0)
    for kinds in ([""], ["one"], ["two", ""]):
        requests: Requests = {name: ([3 + (7 * at) % 190 for at in range(7)], plain) for name in kinds}
        outputs, _ = run_crowd(core, requests, adapters={name: name for name in kinds})
        for name, (prompt, _) in requests.items():
            said = tokens_of(outputs[name])
            assert said == greedy(models[name], prompt, said, 6), name


def test_k_and_v_are_kept_in_float8(model: tuple[Path, PreTrainedModel]) -> None:
    """Prompts and decodes come near to what transformers computes, and not too near."""
    sampling = SamplingParams(max_tokens=8, seed=1, temperature=0.0, logprobs=0)
    requests: Requests = {str(seed): ([3 + (7 * seed + at) % 190 for at in range(20)], sampling) for seed in range(3)}
    outputs, _ = run_crowd(make_engine(model[0], "triton", "fp8"), requests)
    for name, (prompt, _) in requests.items():
        said = tokens_of(outputs[name])
        found = [entry.logprobs[0] for output in outputs[name] for entry in output.logprobs]
        with torch.inference_mode():
            logits = model[1](torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(said)[:, None])[:, 0]
        assert 1e-5 < float((torch.tensor(found) - expected).abs().mean()) < 0.06


def test_grammars_constrain_those_who_ask(tmp_path: Path) -> None:
    one_layer = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    oracle = write_checkpoint("Qwen3", DECODER["Qwen3"] | one_layer, tmp_path)
    write_tokenizer(tmp_path)
    check_grammars(make_engine(tmp_path, "triton"), oracle, tmp_path, prompt_len=11, most=12)


def test_penalties_and_bias_work_as_on_the_cpu(model: tuple[Path, PreTrainedModel]) -> None:
    plain = SamplingParams(max_tokens=6, seed=1, temperature=0.0)
    first = greedy(model[1], [5, 6, 7], [], 1)[0]
    options = {
        "repetition": {"repetition_penalty": 3.0},
        "frequency": {"frequency_penalty": 2.0, "presence_penalty": 1.0},
        "bias": {"logit_bias": {first: -100.0, 17: 2.0}},
        "no early end": {"min_tokens": 3, "stop_token_ids": frozenset([first]), "logit_bias": {9: 1.0}},
    }
    requests: Requests = {
        name: ([5, 6, 7], msgspec.structs.replace(plain, **changes)) for name, changes in options.items()
    }
    texts = [
        {name: tokens_of(news) for name, news in run_crowd(make_engine(model[0], backend), requests)[0].items()}
        for backend in ("triton", "auto" if DEVICE == "cpu" else "torch")
    ]
    assert texts[0] == texts[1]
    assert first not in texts[0]["no early end"][:2]
    assert first not in texts[0]["bias"]


def test_a_seed_gives_the_same_text_alone_and_in_a_crowd(model: tuple[Path, PreTrainedModel]) -> None:
    options = [{"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.05}, {"frequency_penalty": 0.7, "temperature": 1.5}]
    requests: Requests = {
        str(seed): ([3, 4, 5, seed], SamplingParams(max_tokens=4, seed=seed, **changes))  # type: ignore[arg-type]
        for seed, changes in enumerate(options, 20)
    }
    core = make_engine(model[0], "triton")
    crowd, _ = run_crowd(core, requests)
    for name, request in requests.items():
        alone, _ = run_crowd(core, {name: request})
        assert tokens_of(alone[name]) == tokens_of(crowd[name]), name


ON_GPU = [
    ("Qwen3", {"dtype": "bfloat16"}),
    ("Gemma2", {"dtype": "float16"}),
    ("Qwen3", {"dtype": "bfloat16", "quantization": "fp8", "kv_dtype": "fp8"}),
    ("Qwen3", {"dtype": "bfloat16", "quantization": "int4"}),
]
"""Families and settings that are batch invariant. In the interpreter, all but attention is the CPU's."""
INVARIANT = ON_GPU if DEVICE == "cuda" else [("Qwen3", {"quantization": "int8"})]


@pytest.mark.parametrize(("family", "options"), INVARIANT, ids=str)
def test_batch_invariant_requests_are_computed_alike_in_any_company(
    family: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit of their probabilities: in chunks and decodes, preempted and behind the blocks of others."""
    monkeypatch.setattr(invariant_attention, "PART", 64)
    sizes = {} if DEVICE == "cuda" else {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    write_checkpoint(family, DECODER[family] | sizes, tmp_path)
    if DEVICE == "cuda":
        requests = make_requests(12, temperature=0.0, logprobs=0)
        options = options | {"max_model_len": 200, "max_num_seqs": 8, "max_num_batched_tokens": 64, "num_kv_blocks": 55}
    else:
        sampling = SamplingParams(max_tokens=10, seed=1, temperature=0.0, logprobs=0)
        requests = {str(seed): ([*range(5, 14), *range(seed, seed + 4)], sampling) for seed in range(40, 43)}
        options = options | {"max_model_len": 24, "num_kv_blocks": 7}
    crowd, preemptions = run_crowd(make_engine(tmp_path, "triton", **options, batch_invariant=True), requests)
    assert preemptions > 0
    assert any(output.num_cached_tokens for news in crowd.values() for output in news)
    core = make_engine(tmp_path, "triton", **options, batch_invariant=True)
    for name, request in reversed(requests.items()):
        alone = run_crowd(core, {name: request})[0][name]
        assert tokens_of(alone) == tokens_of(crowd[name])
        assert logprobs_of(alone) == logprobs_of(crowd[name])


def logprobs_of(news: list[RequestOutput]) -> list[float]:
    return [entry.logprobs[0] for output in news for entry in output.logprobs]


def test_what_is_not_batch_invariant_is_refused(model: tuple[Path, PreTrainedModel]) -> None:
    with pytest.raises(
        ModelError, match=r"batch_invariant: products of layers\.0\S+ depend on the batch.*quantization"
    ):
        make_engine(model[0], "triton", batch_invariant=True)
    if DEVICE == "cpu":
        with pytest.raises(StartupError, match=r"batch_invariant: with attention_backend torch"):
            make_engine(model[0], "torch", quantization="int8", batch_invariant=True)
    with pytest.raises(ModelError, match=r"batch_invariant: only the decoder .* model_impl generic"):
        make_engine(model[0], "triton", model_impl="generic", batch_invariant=True)


def test_drafts_change_no_text(model: tuple[Path, PreTrainedModel]) -> None:
    """Several decodes of one row are in a step, and right ones give it several tokens."""
    options: list[dict[str, object]] = [
        {
            "top_k": 20,
            "frequency_penalty": 0.7,
            "repetition_penalty": 1.2,
            "min_tokens": 3,
            "stop_token_ids": frozenset(range(VOCAB_SIZE // 2)),
        },
        {
            "temperature": 0.0,
            "presence_penalty": 0.4,
            "logit_bias": {9: 0.5},
            "grammar": constraint.regex("[a-f]{5,}!?"),
            "stop_token_ids": frozenset([VOCAB_SIZE - 1]),
        },
    ]
    requests: Requests = {
        str(seed): ([3, 4, 5, seed], SamplingParams(max_tokens=5, seed=seed, **changes))  # type: ignore[arg-type]
        for seed, changes in enumerate(options, 20)
    }
    core = make_engine(model[0], "triton")
    texts = {name: tokens_of(news) for name, news in run_crowd(core, requests)[0].items()}
    core.scheduler.speculation = speculation = Eager("random", texts, LIMITS["max_num_batched_tokens"])
    for name, news in run_crowd(core, requests)[0].items():
        assert tokens_of(news) == texts[name], name
    assert speculation.num_with_drafts > 1
    assert speculation.num_steps < 10


def test_a_draft_model_with_the_same_weights_guesses_right(model: tuple[Path, PreTrainedModel]) -> None:
    """A prompt of several chunks is seen in as many steps before; behind it, guesses are right at any temperature."""
    prompt = list(range(20, 36))
    requests: Requests = {"drawn": (prompt, SamplingParams(max_tokens=8, seed=2, top_p=0.9))}
    core = make_engine(model[0], "triton", draft_model=str(model[0]))
    text = tokens_of(run_crowd(core, requests)[0]["drawn"])
    core.scheduler.speculation = speculation = Eager("draft model", {"drawn": text}, LIMITS["max_num_batched_tokens"])
    news = run_crowd(core, requests)[0]["drawn"]
    assert tokens_of(news) == text
    assert max(len(output.token_ids) for output in news) > 2
    assert speculation.num_steps < 2 + 7


@pytest.mark.parametrize("most", [1, 3, 8, 16, 17, 256, 1000, 8192])
def test_every_step_has_a_shape_that_is_not_much_larger(most: int) -> None:
    for sizes in (decode_sizes(most), token_sizes(most)):
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == most
        for count in range(1, most + 1):
            assert count <= fitting(sizes, count) <= max(count + 16, count * 9 / 8 + 1)
