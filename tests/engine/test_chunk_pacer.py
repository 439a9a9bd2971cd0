"""The size of prefill chunks on simulated devices: no clock takes part."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.chunk_pacer import MARGIN, ChunkPacer

MAX_ITL = 0.2
BLOCK = 16
MAX_TOKENS = 2048


@pytest.mark.parametrize("seconds_per_token", [1e-5, 2e-4, 1e-3])
@pytest.mark.parametrize("decode_seconds", [0.005, 0.05, 0.1])
def test_pauses_stay_short_while_a_long_prompt_gets_slower(seconds_per_token: float, decode_seconds: float) -> None:
    pacer, position, pauses = ChunkPacer(MAX_ITL, BLOCK, MAX_TOKENS), 0, []
    for _ in range(3):
        pacer.observe(num_decodes=8, prompt_tokens=0, seconds=decode_seconds)
    while position < 30_000:
        chunk = pacer.prompt_tokens(num_decodes=8)
        # Attention to the past makes a token at 30,000 four times as expensive as the first.
        seconds = decode_seconds + chunk * seconds_per_token * (1 + position / 10_000)
        pacer.observe(num_decodes=8, prompt_tokens=chunk, seconds=seconds)
        pauses.append((seconds, chunk))
        position += chunk
    assert all(seconds <= MAX_ITL or chunk == BLOCK for seconds, chunk in pauses)
    # And the time that is allowed is used, once the first steps have felt their way.
    used = [seconds for seconds, chunk in pauses[8:] if BLOCK < chunk < MAX_TOKENS]
    assert not used or sum(used) / len(used) > 0.6 * MAX_ITL


@pytest.mark.parametrize("seed", range(5))
def test_pauses_stay_short_on_a_noisy_machine_with_changing_load(seed: int) -> None:
    rng, pacer, pauses = random.Random(seed), ChunkPacer(MAX_ITL, BLOCK, 512), []

    def step(num_decodes: int, prompt_tokens: int) -> float:
        seconds = 0.03 + 0.0013 * num_decodes + 0.0006 * prompt_tokens
        seconds *= rng.lognormvariate(0, 0.08)
        pacer.observe(num_decodes, prompt_tokens, seconds)
        return seconds

    for _ in range(5):  # short prompts alone: their time says nothing about a token's
        step(0, rng.randint(3, 12))
        for _ in range(20):
            step(1, 0)
    for _ in range(40):
        num_decodes, left = rng.randint(1, 31), rng.choice([40, 128, 500, 3000])
        while left:
            chunk = min(pacer.prompt_tokens(num_decodes), left)
            pauses.append(step(num_decodes, chunk))
            left -= chunk
        for _ in range(rng.randint(0, 30)):
            step(num_decodes, 0)
    too_long = [seconds for seconds in pauses if seconds > MAX_ITL]
    assert len(too_long) < 0.05 * len(pauses)
    assert max(pauses) < 1.5 * MAX_ITL
    assert sum(pauses) / len(pauses) > 0.6 * MAX_ITL


def test_without_decodes_nobody_waits() -> None:
    pacer = ChunkPacer(MAX_ITL, BLOCK, MAX_TOKENS)
    pacer.observe(num_decodes=0, prompt_tokens=MAX_TOKENS, seconds=5.0)
    assert pacer.prompt_tokens(num_decodes=0) == MAX_TOKENS
    assert pacer.prompt_tokens(num_decodes=1) == int(MARGIN * MAX_ITL / (5.0 / MAX_TOKENS))


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 4096), st.floats(0, 100)), max_size=30), st.integers(0, 64)
)
def test_a_chunk_is_a_block_at_least_and_a_step_at_most(steps: list[tuple[int, int, float]], num_decodes: int) -> None:
    pacer = ChunkPacer(MAX_ITL, BLOCK, MAX_TOKENS)
    for decodes, tokens, seconds in steps:
        pacer.observe(decodes, tokens, seconds)
    assert BLOCK <= pacer.prompt_tokens(num_decodes) <= MAX_TOKENS
