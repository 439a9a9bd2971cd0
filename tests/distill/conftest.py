"""A tiny teacher, and what it is asked."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def short_measurement() -> Iterator[None]:
    """Measure speed with short answers and once: that of a tiny model means nothing, and takes most of a run."""
    from app.distill import speed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "_MAX_TOKENS", 12)
        patch.setattr(speed, "_ROUNDS", 1)
        yield


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It writes letters from a to p. What follows depends most on the last one, which a single layer can learn."""
    # Where tests/conftest.py has not yet had its turn, Triton would be imported as for a GPU.
    from tests.models.families import write_checkpoint
    from tests.models.test_oracle import write_tokenizer

    folder = tmp_path_factory.mktemp("teacher")
    model = write_checkpoint("Llama", {}, folder)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data *= 0.1
        layer.mlp.down_proj.weight.data *= 3
    head = model.lm_head.weight.data
    head *= 3
    head[: ord("a")] = head[ord("q") :] = 0
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    chance = random.Random(0)
    texts = ["".join(chance.choice("abcdefgh ") for _ in range(8)) for _ in range(120)]
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return file
