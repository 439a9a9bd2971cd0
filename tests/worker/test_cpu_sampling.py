"""The sampler against transformers' logits processors, and against the distributions it should draw from."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from app.core.sampling import SamplingParams
from app.core.step import NewRequest
from app.kernels.cpu.sampling import mix, no_filters, race, race_keys
from app.worker.batch import Entries
from app.worker.sampling.base import Sampling
from app.worker.sampling.cpu import CpuSampling

VOCAB_SIZE = 2003
PROMPT = [5, 7, 9]
Ints = NDArray[np.int64]


def logits_of(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    spread = {"peaked": 4.0, "usual": 2.0, "flat": 0.01, "masked": 1.0}[kind]
    logits = torch.randn(VOCAB_SIZE, generator=generator) * spread
    if kind == "masked":  # as by a grammar
        logits[torch.rand(VOCAB_SIZE, generator=generator) < 0.98] = float("-inf")
    return logits


def make_sampling(params: list[SamplingParams], output: list[int] | None = None) -> CpuSampling:
    """A sampler with as many rows as there are parameters."""
    sampling = CpuSampling(len(params), len(params), VOCAB_SIZE, torch.device("cpu"))
    add_rows(sampling, params, output)
    return sampling


def add_rows(sampling: Sampling, params: list[SamplingParams], output: list[int] | None = None) -> None:
    for row, one in enumerate(params):
        text = PROMPT + (output or [])
        sampling.add(NewRequest(row=row, token_ids=text, num_prompt_tokens=3, block_ids=[], sampling=one))


def entries_of(rows: Ints, positions: Ints) -> Entries:
    order = np.arange(len(rows))
    return Entries(rows, positions, order, order, np.arange(len(rows) + 1))


def sample(sampling: CpuSampling, logits: Tensor, rows: Ints, positions: Ints) -> list[int]:
    sampling.sample(logits, entries_of(rows, positions), {}, draws=True)
    return sampling.tokens[: len(rows)].tolist()


def draw(logits: Tensor, params: SamplingParams, positions: range, output: list[int] | None = None) -> list[int]:
    """One token at each position, all drawn in one batch of rows with equal parameters."""
    sampling = make_sampling([params] * len(positions), output)
    return sample(sampling, logits.repeat(len(positions), 1), np.arange(len(positions)), np.array(positions))


def reference(logits: Tensor, sampling: SamplingParams, text: list[int]) -> Tensor:
    """Probabilities (vocab,) as transformers computes them."""
    ids = torch.tensor([text])
    scores = logits[None].clone()
    if sampling.repetition_penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, scores)
    scores = TemperatureLogitsWarper(sampling.temperature)(ids, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1.0:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    if sampling.min_p > 0.0:
        scores = MinPLogitsWarper(sampling.min_p)(ids, scores)
    return torch.softmax(scores, dim=-1)[0]


@pytest.mark.parametrize("kind", ["peaked", "flat", "masked"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 1},
        {"top_k": 50},
        {"top_k": 1500},
        {"top_p": 0.9},
        {"top_p": 0.01},
        {"min_p": 0.1},
        {"top_k": 300, "top_p": 0.8, "min_p": 0.02, "temperature": 1.3},
        {"repetition_penalty": 1.5},
    ],
)
def test_draws_follow_the_distribution(kind: str, options: dict[str, float]) -> None:
    sampling = SamplingParams(max_tokens=9, seed=11, **options)  # type: ignore[arg-type]
    logits, count = logits_of(kind), 4000
    probabilities = reference(logits, sampling, PROMPT).double()
    tokens = torch.tensor(draw(logits, sampling, range(10, 10 + count)))
    assert (probabilities[tokens] > 0).all(), "a token was drawn that the filters exclude"
    # Many rare tokens have no count worth testing: compare the cumulative distributions (Kolmogorov and Smirnov).
    found = torch.bincount(tokens, minlength=VOCAB_SIZE).double().cumsum(0) / count
    distance = (found - probabilities.cumsum(0)).abs().max().item()
    assert distance < 1.95 / count**0.5  # exceeded by chance once in a thousand; the seed is fixed


def test_penalties_and_bias() -> None:
    logits = torch.zeros(VOCAB_SIZE)
    logits[20], logits[21], logits[22] = 5.0, 4.0, 3.0
    output = [20, 20, 21]

    def best(**options: object) -> int:
        sampling = SamplingParams(max_tokens=9, seed=0, temperature=0.0, **options)  # type: ignore[arg-type]
        return draw(logits, sampling, range(6, 7), output)[0]

    assert best() == 20
    assert best(presence_penalty=1.5) == 20  # 3.5 against 2.5 and 3.0
    assert best(frequency_penalty=1.2) == 22  # 2.6, 2.8, 3.0
    assert best(frequency_penalty=0.6) == 20  # 3.8, 3.4, 3.0
    assert best(logit_bias={20: -3.0}) == 21
    assert best(logit_bias={100: 6.0}) == 100
    assert best(repetition_penalty=2.0) == 22  # 2.5, 2.0, 3.0
    assert best(stop_token_ids=frozenset([20]), min_tokens=5) == 21
    assert best(stop_token_ids=frozenset([20]), min_tokens=3) == 20


def test_what_was_generated_counts_at_the_next_step() -> None:
    sampling = make_sampling([SamplingParams(max_tokens=9, seed=0, temperature=0.0, frequency_penalty=2.0)])
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 30], logits[0, 31] = 3.0, 2.0
    rows = np.array([0])
    tokens = [sample(sampling, logits.clone(), rows, np.array([position]))[0] for position in range(3, 6)]
    assert tokens == [30, 31, 30]


def test_a_row_draws_the_same_whatever_is_beside_it() -> None:
    mixed = [
        SamplingParams(max_tokens=9, seed=5, temperature=0.0),
        SamplingParams(max_tokens=9, seed=6),
        SamplingParams(max_tokens=9, seed=7, top_k=40),
        SamplingParams(max_tokens=9, seed=8, top_p=0.9, repetition_penalty=1.3),
        SamplingParams(max_tokens=9, seed=9, min_p=0.2, temperature=2.0),
    ]
    logits = torch.randn(len(mixed), VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    positions = np.array([3, 1000, 7, 9, 50])
    together = make_sampling(mixed)
    alone = []
    for row, params in enumerate(mixed):
        single = make_sampling([params])
        alone += sample(single, logits[row : row + 1].clone(), np.array([0]), positions[row : row + 1])
    assert sample(together, logits.clone(), np.arange(len(mixed)), positions) == alone


def luck(seeds: Ints, positions: Ints, tokens: Ints) -> Ints:
    """The hash (n, m) that makes the luck of tokens (n, m)."""
    low, high = race_keys(seeds, positions)
    return mix(mix(tokens.astype(np.uint32) ^ low[:, None]) ^ high[:, None]).astype(np.int64)


def test_luck_is_uniform_and_depends_on_seed_position_and_token_only() -> None:
    seeds = np.repeat(np.array([0, 1, 2**63 - 1]), 500)
    positions = np.tile(np.arange(500), 3)
    tokens = np.tile(np.arange(10), (1500, 1))
    numbers = luck(seeds, positions, tokens)
    assert len(set(numbers.flat)) >= numbers.size - 1  # of 32 bits: two of 15,000 are equal once in forty times
    order = np.random.default_rng(0).permutation(1500)
    assert (luck(seeds[order], positions[order], tokens[:, ::-1]) == numbers[order, ::-1]).all()
    uniform = numbers / 2**32
    for part in (*uniform.reshape(3, 5000), uniform.T.reshape(3, 5000)[1]):
        counts = np.histogram(part, bins=50, range=(0, 1))[0]
        assert ((counts - 100) ** 2 / 100).sum() < 90  # chi square with 49 degrees: beyond once in 3000
        assert abs(np.corrcoef(part[:-1], part[1:])[0, 1]) < 0.05


def test_a_race_is_won_by_the_best_start_and_luck() -> None:
    """The tokens that the kernel skips for speed could not have won."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, (200, VOCAB_SIZE)).astype(np.float32)
    temperature = rng.uniform(0.3, 2.0, 200).astype(np.float32)
    seeds, positions, tokens = rng.integers(0, 2**63, 200), np.arange(200), np.arange(VOCAB_SIZE)
    u = (luck(seeds, positions, np.tile(tokens, (200, 1))) + 0.5) / 2**32
    scores = logits / temperature[:, None] - np.log(-np.log1p(-u))
    winners = race(logits, np.arange(200), tokens, temperature, no_filters(200), race_keys(seeds, positions))
    assert (winners == scores.argmax(axis=1)).all()


@pytest.mark.parametrize("options", [{}, {"top_k": 50}, {"top_p": 0.95}, {"min_p": 0.001}])
def test_rounding_hardly_ever_changes_a_draw(options: dict[str, float]) -> None:
    sampling = SamplingParams(max_tokens=9, seed=3, **options)  # type: ignore[arg-type]
    logits = logits_of("usual")
    rounded = logits + 1e-5 * torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    first, second = (draw(each, sampling, range(10, 4010)) for each in (logits, rounded))
    assert sum(a != b for a, b in zip(first, second, strict=True)) <= 3
