"""A student learns a tiny teacher's way to go on, and what is reported of it is what the service would find."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.check_model import check
from app.checkpoint.folder import ModelFolder
from app.core.sampling import SamplingParams
from app.core.wire import GenerateCommand
from app.distill import training
from app.distill.acceptance import Acceptance, runs_of
from app.distill.answers import Answer, AnswerFile, Header
from app.distill.command import distill
from app.distill.loss import divergence
from app.distill.prompts import PromptReader
from app.distill.questions import make_questions
from app.distill.student import StudentLearner, count_layers, make_student, spaced_layers
from app.distill.task import Task
from app.distill.teacher import Teacher
from app.distill.training import Recipe
from app.engine.build import build_engine
from app.errors import ModelError, StartupError
from app.settings import load_settings
from tests.models.families import DECODER, GENERIC, write_checkpoint
from tests.test_quality import needs_kernel

FLAGS = {"dtype": "float32", "device": "cpu"}
RECIPE = Recipe(seed=3, epochs=8, batch_tokens=600, learning_rate=3e-3, warm_up=5, measurements=4)


def run(
    teacher: Path, prompts: Path, out: Path, recipe: Recipe = RECIPE, kind: Literal["student", "head"] = "student"
) -> dict[str, Any]:
    """The report of a distillation."""
    distill(Task(kind, str(teacher), prompts, out, 1, 24, [1.0, 0.7], 2 if kind == "head" else 1, recipe), **FLAGS)
    report: dict[str, Any] = json.loads((out / "distill.json").read_text())
    return report


def answers_of(out: Path) -> list[Answer]:
    lines = (out / "distill" / "answers.jsonl").read_text().splitlines()[1:]
    return [msgspec.json.decode(line, type=Answer) for line in lines]


@pytest.fixture(scope="module")
def done(teacher: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "student"
    return out, run(teacher, prompts, out)


def test_the_loss_is_the_divergence_of_what_is_kept() -> None:
    rng = np.random.default_rng(0)
    logits, teacher = rng.normal(size=(7, 50)) * 4, rng.normal(size=(7, 50)) * 4
    log_q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    p = np.exp(teacher) / np.exp(teacher).sum(-1, keepdims=True)
    ids = np.argsort(-p)[:, :20]
    top, rest = np.take_along_axis(p, ids, 1), 1 - np.take_along_axis(p, ids, 1).sum(1)
    top_q = np.take_along_axis(log_q, ids, 1)
    expected = (top * (np.log(top) - top_q)).sum(1) + rest * (np.log(rest) - np.log(1 - np.exp(top_q).sum(1)))
    kept = torch.tensor(ids), torch.tensor(np.log(top)).float(), torch.tensor(rest).float()
    assert divergence(torch.tensor(logits).float(), *kept).numpy() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_student_of_the_same_mind_loses_nothing() -> None:
    """Also where it gives all other tokens next to nothing, which float32 cannot tell from nothing."""
    logits = torch.tensor([[60.0, 30.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    logprobs = torch.log_softmax(logits.detach(), -1)
    loss = divergence(logits, torch.tensor([[0, 1], [0, 1]]), logprobs[:, :2], logprobs[:, 2].exp())
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0, 0], abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-5


@pytest.mark.parametrize(("total", "wanted", "layers"), [(30, 6, [0, 6, 12, 17, 23, 29]), (3, 2, [0, 2]), (3, 1, [0])])
def test_layers_are_spaced_evenly(total: int, wanted: int, layers: list[int]) -> None:
    assert spaced_layers(total, wanted) == layers


def test_tokens_a_step_are_counted_as_steps_go() -> None:
    found = Acceptance.of([runs_of([True, True, False, True, False]), runs_of([False])])
    assert found.share == 0.5
    # 1 draft: (1 1) (0) (1 0) and (0). 2 drafts and more: (1 1 0) (1 0) and (0).
    assert found.tokens_a_step == pytest.approx([6 / 4, *[6 / 3] * 7])
    assert found.first_drafts == pytest.approx([3 / 6, 1 / 6, *[0] * 6])


def test_it_learns(done: tuple[Path, dict[str, Any]]) -> None:
    _, report = done

    def mean_share(when: str) -> float:
        return float(np.mean([each["share"] for each in report[when]["acceptance"].values()]))

    assert report["after"]["held_out_loss"] < report["before"]["held_out_loss"] / 2
    assert mean_share("after") > mean_share("before") + 0.1
    assert mean_share("after") > np.mean(list(report["accepted_with_independent_luck"].values())) + 0.1
    assert (report["history"][0]["step"], report["history"][-1]["step"]) == (0, report["steps"])


def test_what_is_accepted_is_what_the_service_draws(done: tuple[Path, dict[str, Any]]) -> None:
    """An engine with the student draws one token behind each beginning of a held-out answer."""
    out, report = done
    engine, _ = build_engine(load_settings(model=str(out), **FLAGS), out)
    wanted, right = {}, {}
    for index, answer in enumerate(answers_of(out)):
        question = answer.question
        if question.held_out:
            right[f"{question.temperature:g}"] = [0, 0]
            for at, token in enumerate(answer.tokens):
                sampling = SamplingParams(max_tokens=1, seed=question.seed, temperature=question.temperature)
                begun = question.prompt + answer.tokens[:at]
                name = f"{index} {at}"
                wanted[name] = f"{question.temperature:g}", token
                engine.add(
                    GenerateCommand(
                        request_id=name, prompt_token_ids=begun, sampling=sampling, arrived_at=time.monotonic()
                    )
                )
    while engine.has_work:
        for output in engine.step().outputs:
            heat, token = wanted[output.request_id]
            right[heat][0] += output.token_ids == [token]
            right[heat][1] += 1
    shares = {heat: equal / count for heat, (equal, count) in right.items()}
    assert shares == pytest.approx({heat: each["share"] for heat, each in report["after"]["acceptance"].items()})


def test_the_folder_is_a_model(done: tuple[Path, dict[str, Any]], teacher: Path) -> None:
    """Paceline and transformers compute the same with it; embeddings and head are the teacher's."""
    out, _ = done
    assert check(str(out))
    student, weights = load_file(out / "model.safetensors"), load_file(teacher / "model.safetensors")
    assert not any(".layers.1." in name for name in student)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(student[name], weights[name])
    assert (out / "tokenizer.json").read_bytes() == (teacher / "tokenizer.json").read_bytes()
    assert (out / "distill.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_says_what_is_lost_and_gained(done: tuple[Path, dict[str, Any]], teacher: Path) -> None:
    """Perplexities are what transformers finds; a tiny teacher gains nothing, but its steps have drafts."""
    out, report = done
    for folder, name in ((out, "perplexity"), (teacher, "perplexity_of_teacher")):
        model = AutoModelForCausalLM.from_pretrained(folder)
        surprises = []
        for answer in answers_of(out):
            if answer.question.held_out:
                logits = model(torch.tensor([answer.question.prompt + answer.tokens])).logits[
                    0, -len(answer.tokens) - 1 : -1
                ]
                surprises += (-torch.log_softmax(logits, -1))[range(len(answer.tokens)), answer.tokens].tolist()
        assert report[name] == pytest.approx(np.exp(np.mean(surprises)), rel=0.03)  # products may be in bfloat16
    assert report["perplexity"] > report["perplexity_of_teacher"]
    assert [found["clients"] for found in report["speed"]] == [1, 2, 4, 8]
    for found in report["speed"]:
        assert found["times"] == pytest.approx(found["tokens_a_second"] / found["tokens_a_second_without"])
    assert 0 < report["speed"][0]["accepted"] <= report["speed"][0]["drafted"]


def test_two_runs_do_not_share_a_folder(teacher: Path, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "distill").mkdir()
    with FileLock(tmp_path / "distill" / "lock"), pytest.raises(StartupError, match="--out: another run is writing to"):
        run(teacher, prompts, tmp_path)


def test_a_run_that_was_broken_off_goes_on(
    done: tuple[Path, dict[str, Any]], teacher: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are those without a break."""
    undisturbed, _ = done
    out = tmp_path / "out"
    shutil.copytree(undisturbed / "distill", out / "distill")
    write, count = training.write_checkpoint, 0

    def write_and_break(*args: Any) -> None:
        nonlocal count
        write(*args)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_checkpoint", write_and_break)
        with pytest.raises(KeyboardInterrupt):
            run(teacher, prompts, out)
    with pytest.raises(StartupError, match=r"checkpoint.safetensors is of a run with other options"):
        run(teacher, prompts, out, msgspec.structs.replace(RECIPE, epochs=5))
    report = run(teacher, prompts, out)
    assert count == 2
    assert report["steps"] == report["history"][-1]["step"]
    assert (out / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    with pytest.raises(StartupError, match=r"--out: .*out has a student already"):
        run(teacher, prompts, out)


@needs_kernel
def test_answers_that_were_broken_off_go_on(tmp_path: Path) -> None:
    """Where a token's numbers do not depend on the batch, the file is the one that it would have been, to the byte."""
    write_checkpoint("Llama", {"intermediate_size": 128}, tmp_path)
    teacher = Teacher(load_settings(model=str(tmp_path), quantization="int8", **FLAGS), tmp_path, frozenset({7}))
    questions = make_questions([[1 + n, 2, 3] for n in range(100)], [0.0, 1.0], 0)
    header = Header(teacher="", max_tokens=9, states=0, questions="")
    file = tmp_path / "answers.jsonl"

    def go_on() -> bytes:
        answers = AnswerFile(file, header)
        kept = len(list(answers.read()))
        assert len(list(answers.add(teacher.answer(questions[kept:], 9)))) == len(questions) - kept
        return file.read_bytes()

    whole = go_on()
    file.write_bytes(whole[: len(whole) // 2])
    assert go_on() == whole


@pytest.mark.parametrize("family", ["Gemma3Text", "SmolLM3", "Qwen2", "GPTNeoX", "Mixtral"])
def test_a_student_of_all_layers_is_the_teacher(family: str, tmp_path: Path) -> None:
    """Families whose layers differ in what config.json lists of each."""
    model = write_checkpoint(family, (DECODER | GENERIC)[family] | {"num_hidden_layers": 4}, tmp_path)
    student = make_student(model, [0, 1, 2, 3])
    token_ids = torch.arange(40)[None]
    assert torch.equal(student(token_ids).logits, model(token_ids).logits)
    fewer = make_student(model, [0, 1, 3])
    kinds = getattr(model.config, "layer_types", None)
    assert kinds is None or fewer.config.layer_types == [kinds[0], kinds[1], kinds[3]]
    assert fewer(token_ids).logits.isfinite().all()


def test_a_student_of_a_gguf_file_is_plain(tmp_path: Path) -> None:
    model = write_checkpoint("Llama", {}, tmp_path / "teacher")
    # As transformers says of weights that it has read from such a file.
    model.config.quantization_config = {"quant_method": "gguf", "gguf_file": "model.gguf"}
    student = StudentLearner(make_student(model, [0]), [0], lambda *_: [], False, 1.0)
    student.save(ModelFolder(tmp_path / "teacher"), tmp_path / "out")
    assert ModelFolder(tmp_path / "out").quantization is None


def test_families_name_their_layers_differently(tmp_path: Path) -> None:
    model = write_checkpoint("GPT2", GENERIC["GPT2"], tmp_path / "gpt2")
    assert count_layers(make_student(model, [0, 2])) == 2
    seeing = write_checkpoint("Gemma3", GENERIC["Gemma3"], tmp_path / "gemma3")
    with pytest.raises(ModelError, match="--teacher: Gemma3ForConditionalGeneration is more than one stack"):
        count_layers(seeing)


def test_answers_of_other_questions_are_refused(
    done: tuple[Path, dict[str, Any]], teacher: Path, prompts: Path, tmp_path: Path
) -> None:
    shutil.copytree(done[0] / "distill", tmp_path / "distill")
    with pytest.raises(StartupError, match=r"--out: .*answers.jsonl was begun with other questions"):
        run(teacher, prompts, tmp_path, msgspec.structs.replace(RECIPE, seed=4))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a"', "Expecting"),
        ("[1]", "not an object"),
        ('{"token_ids": [1, "2"]}', '"token_ids" is not a list of whole numbers'),
        ('{"text": "a"}', 'not an object with either "prompt" or "messages"'),
        ('{"prompt": 5}', "not a text"),
        ('{"prompt": ""}', "the prompt has no tokens"),
        ('{"messages": []}', '"messages" is not a list'),
        ('{"messages": [{"role": "user"}]}', "a message is not an object"),
        ('{"messages": [{"role": "cook", "content": "a"}]}', 'the role "cook" is none of'),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "a"}]}', "no chat template"),
    ],
)
def test_a_broken_file_of_prompts_names_its_line(line: str, words: str, teacher: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n\n{line}\n')
    with pytest.raises(StartupError, match=rf"--prompts: line 3 of .*prompts.jsonl: .*{re.escape(words)}"):
        PromptReader(teacher).read(file, 9)


def test_kept_prompts_that_are_no_questions_are_left_out(teacher: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    kept: list[list[int]] = [[1, 2], [1, 199], [], [5] * 9, [5] * 10]
    file.write_text("".join(json.dumps({"token_ids": token_ids}) + "\n" for token_ids in kept))
    assert PromptReader(teacher).read(file, 9) == {1: [1, 2], 4: [5] * 9}


def test_prompts_become_what_the_server_makes_of_them(embedded_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi <|im_end|>"}]
    file.write_text(json.dumps({"prompt": "Hi"}) + "\n" + json.dumps({"messages": messages}))
    reader = PromptReader(embedded_model)
    template = AutoTokenizer.from_pretrained(embedded_model)
    expected = template.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    first, second = reader.read(file, 9).values()
    assert first == expected["input_ids"]
    end = reader.tokenizer.added_id("<|im_end|>")
    assert second.count(end) == 2  # of the template; what a user types is text


def test_what_cannot_be_distilled_is_refused_by_name(teacher: Path, prompts: Path, tmp_path: Path) -> None:
    encoder, quantized = tmp_path / "encoder", tmp_path / "quantized"
    for folder, changes in (
        (encoder, {"model_type": "bert", "architectures": ["BertModel"]}),
        (quantized, {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}),
    ):
        shutil.copytree(teacher, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
    alone, other = tmp_path / "alone.jsonl", tmp_path / "other"
    alone.write_text('{"prompt": "a"}\n' * 9)
    other.mkdir()
    (other / "notes").touch()
    for model, file, out, layers, words in (
        (encoder, prompts, "out", 1, "--teacher: BertModel is an encoder"),
        (quantized, prompts, "out", 1, r"--teacher: the weights in .* are quantized \(gptq\)"),
        (teacher, alone, "out", 1, "--prompts: 1 different prompts are too few"),
        (teacher, tmp_path / "missing", "out", 1, "--prompts: .*missing cannot be read"),
        (teacher, prompts, "other", 1, "--out: .*other is neither empty nor a run"),
        (teacher, prompts, "layers", 3, "--layers: 3 is not between 1 and 2: the teacher has 3 layers"),
    ):
        with pytest.raises(StartupError, match=words):
            distill(Task("student", str(model), file, tmp_path / out, layers, 4, [1.0], 1, RECIPE), **FLAGS)
    assert not (tmp_path / "layers" / "distill" / "answers.jsonl").exists()  # answers take long
    long = tmp_path / "long.jsonl"
    long.write_text(f'{{"prompt": "a"}}\n{{"prompt": "{"a" * 500}"}}\n')
    with pytest.raises(StartupError, match="--prompts: line 2 has 500 tokens, and there is room for 488"):
        run(teacher, long, tmp_path / "out")
