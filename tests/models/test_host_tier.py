"""Conversations whose blocks go to host memory and come back say what transformers says without any of that."""

import random
import time
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from app.core.sampling import SamplingParams
from app.core.wire import GenerateCommand
from app.engine.core import EngineCore
from tests.models.families import DECODER, VOCAB_SIZE, write_checkpoint
from tests.models.test_oracle import greedy, make_engine, resume, tiny_settings

CONVERSATIONS = 6
TURNS = 4


def play(core: EngineCore, said: dict[str, list[int]], seed: int, steps: int | None = None) -> tuple[int, int]:
    """A turn of every conversation, all of them together. Returns preemptions, and blocks copied back.

    `said` gets what was generated; `steps`: how many of them are made, if not all.
    """
    rng, preemptions, num_in = random.Random(seed), 0, 0
    waiting = [] if steps is not None else rng.sample(list(said), len(said))
    for name in waiting:
        said[name] += [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.choice([3, 9, 14]))]
    while (waiting or core.has_work) and steps != 0:
        steps = None if steps is None else steps - 1
        if waiting and rng.random() < 0.6:
            core.add(turn(waiting[0], said[waiting.pop(0)], seed))
        message = core.step()
        preemptions += message.stats.num_preemptions
        num_in += message.stats.num_blocks_in
        for output in message.outputs:
            assert not output.error
            said[output.request_id.partition(" ")[0]] += output.token_ids
    return preemptions, num_in


def turn(name: str, tokens: list[int], number: int) -> GenerateCommand:
    return GenerateCommand(
        request_id=f"{name} {number}",
        prompt_token_ids=list(tokens),
        sampling=SamplingParams(max_tokens=20, seed=0, temperature=0.0),
        cache_retention=60.0 if name < "3" else 0.0,
        arrived_at=time.monotonic(),
    )


def is_greedy(model: PreTrainedModel, before: list[int], after: list[int]) -> bool:
    answer = after[-20:]
    return greedy(model, after[:-20], answer, 20) == answer and after[: len(before)] == before


@pytest.mark.parametrize(
    ("family", "options"),
    [("Llama", {}), ("Gemma3Text", {}), ("Llama", {"attention_backend": "torch"}), ("Llama", {"overlap": False})],
)
def test_conversations_go_on_from_host_memory(family: str, options: dict[str, object], tmp_path: Path) -> None:
    model = write_checkpoint(family, DECODER[family], tmp_path)
    core = make_engine(tmp_path, tiny_settings(host_kv_cache="8MiB", **options), bool(options.get("overlap", True)))
    said: dict[str, list[int]] = {str(number): [number + 3] * 5 for number in range(CONVERSATIONS)}
    preemptions = num_in = 0
    for number in range(TURNS):
        before = {name: list(tokens) for name, tokens in said.items()}
        preempted, copied = play(core, said, number)
        preemptions, num_in = preemptions + preempted, num_in + copied
        assert all(is_greedy(model, before[name], said[name]) for name in said)
    assert preemptions > 0
    assert num_in > 10


def test_an_engine_that_died_goes_on_without_what_was_in_its_memory(tmp_path: Path) -> None:
    model = write_checkpoint("Llama", DECODER["Llama"], tmp_path)
    settings = tiny_settings(host_kv_cache="8MiB")
    core, next_core = (make_engine(tmp_path, settings) for _ in range(2))
    said: dict[str, list[int]] = {str(number): [number + 3] * 60 for number in range(CONVERSATIONS)}
    play(core, said, 0)
    prompts = {name: list(tokens) for name, tokens in said.items()}
    for name, tokens in prompts.items():
        core.add(turn(name, tokens, 1))
    play(core, said, 1, steps=12)
    assert any(len(said[name]) > len(prompts[name]) for name in said)
    for name, prompt in prompts.items():  # the other engine knows nothing
        told = said[name][len(prompt) :]
        if len(told) < 20:
            resume(next_core, f"{name} 1", (prompt, turn(name, prompt, 1).sampling), told)
    play(next_core, said, 1, steps=1000)
    assert all(is_greedy(model, prompts[name], said[name]) for name in said)
