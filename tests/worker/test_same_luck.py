"""One seed draws the same tokens from the same logits on every device: on the CPU, and on a GPU or its interpreter."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from app.core.sampling import SamplingParams
from app.core.step import NOT_A_NUMBER, NewRequest
from app.worker.batch import Entries
from app.worker.sampling.base import Sampling
from app.worker.sampling.cpu import CpuSampling
from app.worker.sampling.gpu import GpuSampling

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCAB_SIZE = 1503
PROMPT = [5, 7, 9, 7]
pytestmark = [  # numpy's, in the interpreter
    pytest.mark.filterwarnings("ignore:overflow encountered"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered"),
    pytest.mark.filterwarnings("ignore:invalid value encountered"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered"),
]
OPTIONS: list[dict[str, object]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.6},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 1200, "temperature": 1.7},
    {"top_p": 0.9},
    {"top_p": 0.3},
    {"min_p": 0.05},
    {"top_k": 300, "top_p": 0.8, "min_p": 0.02, "temperature": 1.3},
    {"repetition_penalty": 1.5, "frequency_penalty": 0.4, "presence_penalty": 0.3},
    {"logit_bias": {17: 4.0, 18: -100.0}},
    {"min_tokens": 9, "stop_token_ids": frozenset(range(40)), "top_p": 0.95},
]


def draw(sampling: Sampling, params: list[SamplingParams], logits: torch.Tensor, positions: list[int]) -> list[int]:
    """Draw a token for each row."""
    for row, one in enumerate(params):
        sampling.add(NewRequest(row=row, token_ids=PROMPT, num_prompt_tokens=4, block_ids=[], sampling=one))
    rows = np.arange(len(params))
    entries = Entries(rows, np.array(positions), rows, rows, np.arange(len(rows) + 1))
    on_host = {name: np.zeros(len(rows), dtype=kind) for name, kind in sampling.fields().items()}
    sampling.write(entries, on_host)
    numbers = {name: torch.from_numpy(array).to(logits.device) for name, array in on_host.items()}
    sampling.sample(logits, entries, numbers, draws=sampling.draws(entries))
    return sampling.tokens.tolist()


@pytest.mark.parametrize("spread", [0.02, 4.0], ids=["flat", "peaked"])
def test_devices_draw_the_same(spread: float) -> None:
    params = [
        SamplingParams(max_tokens=20, seed=seed, **options)  # type: ignore[arg-type]
        for options in OPTIONS
        for seed in (1, 2**63 - 1)
    ]
    positions = [3 + 17 * index for index in range(len(params))]
    logits = torch.randn(len(params), VOCAB_SIZE, generator=torch.Generator().manual_seed(7)) * spread
    logits[1, 3] = float("nan")
    size = len(params), len(params), VOCAB_SIZE
    on_cpu = draw(CpuSampling(*size, torch.device("cpu")), params, logits.clone(), positions)
    on_gpu = draw(GpuSampling(*size, DEVICE), params, logits.to(DEVICE, copy=True), positions)
    assert on_cpu == on_gpu
    assert on_cpu.count(NOT_A_NUMBER) == 1
    assert len(set(on_cpu)) > 5
