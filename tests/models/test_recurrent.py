"""Models whose layers keep states: a crowd gets what transformers says to each request alone."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from app.core.sampling import SamplingParams
from app.core.step import NewRequest
from app.engine.build import build_engine
from app.engine.core import EngineCore
from app.errors import StartupError
from app.worker.batch import Entries
from app.worker.sampling.cpu import CpuSampling
from app.worker.taped import Taped
from tests.models.families import RECURRENT, VOCAB_SIZE, write_checkpoint
from tests.models.test_oracle import make_engine, resume, run_crowd, tiny_settings, tokens_of

WHOLE_PROMPTS = {"Mamba", "FalconMamba", "Jamba", "Zamba"}
"""transformers computes a prompt of these wrongly in pieces, and there are no kernels for them."""
NO_BLOCKS = {"Mamba", "FalconMamba", "Mamba2"}
"""No layer attends, so that no memory runs out."""
Asked = dict[str, tuple[list[int], SamplingParams]]


def ask() -> Asked:
    """Prompts around the ends of blocks and of chunks, greedy and seeded, and three choices of one prompt."""
    draw = random.Random(0)
    requests: Asked = {}
    for index, (length, most) in enumerate([(1, 30), (90, 12), (24, 30), (33, 24), (100, 12), (7, 30)]):
        prompt = [draw.randrange(3, VOCAB_SIZE) for _ in range(length)]
        sampling = SamplingParams(max_tokens=most, seed=index, temperature=index % 3 / 2)
        requests[f"{length} tokens"] = prompt, sampling
    for seed in range(3):
        requests[f"choice {seed}"] = [7 + at % 90 for at in range(50)], SamplingParams(max_tokens=12, seed=seed)
    return requests


@torch.inference_mode()
def drawn(model: PreTrainedModel, prompt: list[int], said: list[int], sampling: SamplingParams) -> list[int]:
    """What is drawn from transformers' logits after the prompt, and after each token that was said."""
    logits = model(torch.tensor([prompt + said[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :].float()
    rows = np.arange(len(said))
    draws = CpuSampling(len(rows), len(rows), VOCAB_SIZE, torch.device("cpu"))
    for row in rows:
        draws.add(NewRequest(row=row, token_ids=prompt, num_prompt_tokens=1, block_ids=[], sampling=sampling))
    entries = Entries(rows, rows + len(prompt) - 1, rows, rows, np.arange(len(rows) + 1))
    draws.sample(logits, entries, {}, draws=True)
    return draws.tokens.tolist()


def go_on(core: EngineCore, requests: Asked, said: dict[str, list[int]]) -> dict[str, list[int]]:
    """Submit requests again from the middle of what they said, as after an engine's death; returns the rest."""
    for name, request in requests.items():
        resume(core, name, request, said[name][: len(said[name]) // 2])
    rest: dict[str, list[int]] = {name: [] for name in requests}
    while core.has_work:
        for output in core.step().outputs:
            rest[output.request_id] += output.token_ids
    return rest


def check_next_turn(core: EngineCore, model: PreTrainedModel) -> None:
    """Go on behind an answer: with the state from where the prompt's last full block ended."""
    prompt, sampling = list(range(10, 70)), SamplingParams(max_tokens=6, seed=5)
    answer = tokens_of(run_crowd(core, {"first": (prompt, sampling)})[0]["first"])
    turn = prompt + answer + [5, 6, 7]
    news = run_crowd(core, {"turn": (turn, sampling)})[0]["turn"]
    assert tokens_of(news) == drawn(model, turn, tokens_of(news), sampling)
    assert news[0].num_cached_tokens == (56 if core.scheduler.kv.prefix_caching else 0)


@pytest.mark.parametrize("family", RECURRENT)
def test_states_in_a_crowd_equal_transformers_alone(family: str, tmp_path: Path) -> None:
    model = write_checkpoint(family, RECURRENT[family], tmp_path)
    few_blocks = tiny_settings().model_copy(update={"num_kv_blocks": 26})
    core = make_engine(tmp_path, few_blocks, overlap=family != "Qwen3Next")
    assert core.scheduler.chunked_prefill == (family not in WHOLE_PROMPTS)
    requests = ask()
    outputs, preemptions = run_crowd(core, requests)
    assert preemptions > 0 or family in NO_BLOCKS
    said = {name: tokens_of(news) for name, news in outputs.items()}
    for name, (prompt, sampling) in requests.items():
        assert said[name] == drawn(model, prompt, said[name], sampling), name
    check_next_turn(core, model)
    execution = core.worker.execution  # type: ignore[attr-defined]
    assert isinstance(execution, Taped) == (family not in WHOLE_PROMPTS)
    assert family in WHOLE_PROMPTS or not execution._not_recordable
    if family not in WHOLE_PROMPTS:
        assert [outputs[f"choice {seed}"][0].num_cached_tokens for seed in range(3)].count(48) >= 2
    again = {name: requests[name] for name in ("33 tokens", "choice 1")}
    assert go_on(core, again, said) == {name: said[name][len(said[name]) // 2 :] for name in again}
    prompt = requests["33 tokens"][0]  # this one is greedy
    generated = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None)
    assert said["33 tokens"] == generated[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["Mamba", "FalconH1"])  # Mamba reads the weight of one of its layers itself
def test_rounded_weights(family: str, tmp_path: Path) -> None:
    model = write_checkpoint(family, RECURRENT[family], tmp_path)
    core = make_engine(tmp_path, tiny_settings(quantization="int8"))
    prompt = [3 + at % 90 for at in range(100)]
    sampling = SamplingParams(max_tokens=1, seed=0, temperature=0.0, prompt_logprobs=0)
    outputs, _ = run_crowd(core, {"one": (prompt, sampling)})
    found = [entry.logprobs[0] for output in outputs["one"] for entry in output.prompt_logprobs]
    with torch.inference_mode():
        expected = model(torch.tensor([prompt]), use_cache=False).logits[0, :-1].log_softmax(-1)
    difference = torch.tensor(found) - expected.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    assert 0 < difference.abs().mean() < 0.1


def test_states_do_not_go_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_checkpoint("Lfm2", RECURRENT["Lfm2"], tmp_path)
    caplog.set_level("INFO")
    core, _ = build_engine(tiny_settings(), tmp_path)
    assert core.scheduler.speculation is None
    assert "recurrent states of 8 requests, and 8 snapshots of states" in caplog.text
    assert "no drafts" in caplog.text
    with pytest.raises(StartupError, match="draft_model: the model keeps recurrent states"):
        build_engine(tiny_settings(speculate="draft", draft_model=str(tmp_path)), tmp_path)
