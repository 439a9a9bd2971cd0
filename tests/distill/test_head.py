"""A draft head learns a tiny teacher's way to go on, and guesses for it in the service as often as is reported."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.core.request import Request
from app.core.sampling import SamplingParams
from app.core.step import BY_MODEL
from app.core.wire import GenerateCommand
from app.distill import training
from app.distill.states import StateFile
from app.engine.build import build_engine
from app.engine.speculation import Speculation
from app.errors import PacelineError, StartupError
from app.settings import load_settings
from app.worker.factory import build_worker
from tests.distill.test_distill import FLAGS, RECIPE, answers_of, run
from tests.models.test_drafts import check, varied
from tests.models.test_oracle import tiny_settings

NUM_DRAFTS = 3


@pytest.fixture(scope="module")
def done(teacher: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "head"
    return out, run(teacher, prompts, out, kind="head")


def test_it_learns(done: tuple[Path, dict[str, Any]]) -> None:
    _, report = done
    assert report["after"]["held_out_loss"] < report["before"]["held_out_loss"] / 2
    for heat, found in report["after"]["acceptance"].items():
        assert found["share"] > report["before"]["acceptance"][heat]["share"] + 0.1
        assert heat == "0" or found["share"] > report["accepted_with_independent_luck"][heat] + 0.1
        assert found["tokens_a_step"][NUM_DRAFTS - 1] > 1.3


def test_the_service_accepts_what_is_reported(done: tuple[Path, dict[str, Any]], teacher: Path) -> None:
    """With always as many drafts, it gives the held-out answers in as many steps, but for what 8 bits change."""
    out, report = done
    engine, _ = build_engine(load_settings(model=str(teacher), draft_model=str(out), **FLAGS), teacher)
    speculation = engine.scheduler.speculation
    assert speculation
    _always_draft(speculation)
    steps: dict[str, list[int]] = {}
    for answer in answers_of(out):
        question = answer.question
        if not question.held_out:
            continue
        sampling = SamplingParams(max_tokens=len(answer.tokens), seed=question.seed, temperature=question.temperature)
        engine.add(
            GenerateCommand(
                request_id="", prompt_token_ids=question.prompt, sampling=sampling, arrived_at=time.monotonic()
            )
        )
        text, count = [], 0
        while engine.has_work:
            for output in engine.step().outputs:
                text += output.token_ids
                count += bool(output.token_ids)
        assert text == answer.tokens
        steps.setdefault(f"{question.temperature:g}", []).append(count)
        steps.setdefault(f"{question.temperature:g} tokens", []).append(len(text))
    for heat, found in report["after"]["acceptance"].items():
        tokens_a_step = sum(steps[f"{heat} tokens"]) / sum(steps[heat])
        assert tokens_a_step == pytest.approx(found["tokens_a_step"][NUM_DRAFTS - 1], rel=0.03)


def _always_draft(speculation: Speculation) -> None:
    def choose(requests: Sequence[Request]) -> dict[str, list[int]]:
        left = [(each, each.max_num_tokens - len(each.token_ids) - 1) for each in requests]
        return {each.request_id: [BY_MODEL] * min(NUM_DRAFTS, most) for each, most in left if most > 0}

    speculation.choose = choose  # type: ignore[method-assign]
    speculation.is_worth_waiting = bool  # type: ignore[method-assign, assignment]


def test_drafts_of_a_head_change_no_text(done: tuple[Path, dict[str, Any]], teacher: Path) -> None:
    """In a crowd of all kinds of requests, with preemptions."""
    num_steps = check(teacher, varied(16), tiny_settings(draft_model=str(done[0])), kinds=["draft model"])
    assert num_steps["draft model"] < 0.95 * num_steps["none"]


def test_a_run_that_was_broken_off_goes_on(
    done: tuple[Path, dict[str, Any]], teacher: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are those without a break."""
    undisturbed, _ = done
    shutil.copytree(undisturbed / "distill", tmp_path / "distill")
    write = training.write_checkpoint

    def write_and_break(*args: Any) -> None:
        write(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_checkpoint", write_and_break)
        with pytest.raises(KeyboardInterrupt):
            run(teacher, prompts, tmp_path, kind="head")
    report = run(teacher, prompts, tmp_path, kind="head")
    assert report["steps"] == done[1]["steps"]
    assert (tmp_path / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()


def test_states_of_an_answer_that_was_not_kept_are_dropped(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    answers = answers_of(done[0])[:3]
    states = [torch.randn(len(answer.tokens), 8).bfloat16() for answer in answers]
    file = StateFile(tmp_path / "states.bin", 8, [])
    for each in (*states[:2], states[0]):
        file.add(each)
    file = StateFile(tmp_path / "states.bin", 8, answers[:2])
    file.add(states[2])
    read = file.read(answers)
    assert all(torch.equal(read[answer.question.seed], each) for answer, each in zip(answers, states, strict=True))


def test_answers_without_states_are_refused(
    done: tuple[Path, dict[str, Any]], teacher: Path, prompts: Path, tmp_path: Path
) -> None:
    for name, recipe in (("kind", RECIPE), ("file", msgspec.structs.replace(RECIPE, epochs=1))):
        shutil.copytree(done[0] / "distill", tmp_path / name / "distill")
        (tmp_path / name / "distill" / "states.bin").unlink()
        kind, told = ("student", "other states") if name == "kind" else ("head", "states.bin has fewer states")
        with pytest.raises(StartupError, match=told):
            run(teacher, prompts, tmp_path / name, recipe, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": 32}, "draft_model: it was made for a hidden_size of 32, and the model's is 64"),
        ({"vocab_size": 150}, "draft_model: it was made for a vocab_size of 150, and the model's is 199"),
        ({"num_tokens": "many"}, "num_tokens is 'many'"),
        ({"intermediate_size": 32}, "down_proj.weight has shape"),
        ({}, "token_ids are not all from 0 to 198"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    changes: dict[str, Any], told: str, done: tuple[Path, dict[str, Any]], teacher: Path, tmp_path: Path
) -> None:
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    if not changes:
        tensors = load_file(tmp_path / "model.safetensors")
        save_file(tensors | {"token_ids": torch.full_like(tensors["token_ids"], 199)}, tmp_path / "model.safetensors")
    with pytest.raises(PacelineError, match=told):
        build_worker(tiny_settings(draft_model=str(tmp_path)), teacher)
