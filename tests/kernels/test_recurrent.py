"""Kernels of layers that carry states, on both devices, against plain torch in float64, token by token."""

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from app.kernels import entries
from app.kernels.cpu import recurrent as of_cpu
from app.kernels.entries import chunks_of
from app.kernels.gpu import delta_chunks
from app.kernels.gpu import recurrent as of_gpu
from tests.kernels.test_gpu import DEVICE, HALF, close, randn, rounding

__all__ = ["rounding"]  # a fixture
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")

Entries = list[tuple[int, int, int, int, int]]
DECODES: Entries = [(3, 0, 1, -1, -1), (1, 1, 2, 2, 5)]
ENTRIES: Entries = [*DECODES, (0, 2, 41, 23, 4), (6, 41, 43, 43, 2)]
"""Two decodes, a piece of a prompt whose state is copied within, and one where it is copied at the end."""
PADDED, SLOTS = 45, 7


CASES: list[tuple[ModuleType, torch.dtype]] = [(of_gpu, torch.float32), (of_gpu, HALF)]
if DEVICE.type == "cpu":
    CASES += [(of_cpu, torch.float32), (of_cpu, torch.bfloat16)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].__name__.split('.')[-2]} {case[1]}")
def case(request: pytest.FixtureRequest) -> tuple[ModuleType, torch.dtype]:
    """The kernels of a device, and a dtype that they take."""
    torch.manual_seed(0)
    chosen: tuple[ModuleType, torch.dtype] = request.param
    return chosen


def numbers(of: Entries) -> tuple[Tensor, Tensor, Tensor]:
    """Entries with padding, the entry of each token, and chunks with padding."""
    owners = [index for index, (_, start, end, _, _) in enumerate(of) for _ in range(start, end)]
    chunks = [*chunks_of(of), (0, 0)] if of is ENTRIES else torch.zeros(0, 2)
    parts = [*of, (0, 0, 0, -1, -1)], [*owners, *[-1] * (PADDED - len(owners))], chunks
    entries, entry_of, chunk_numbers = (torch.as_tensor(part, dtype=torch.int32).to(DEVICE) for part in parts)
    return entries, entry_of, chunk_numbers


def one_by_one(memory: Tensor, step: "Step", of: Entries = ENTRIES) -> tuple[Tensor, Tensor]:
    """What a step gives for each token (tokens, ...), and the states behind it, in float64."""
    memory, out = memory.double().clone(), []
    for slot, start, end, cut, copy in of:
        for token in range(start, end):
            memory[slot], result = step(memory[slot], token)
            out.append(result)
            if token + 1 == cut:
                memory[copy] = memory[slot]
    return torch.stack(out), memory


class Step:
    """Goes on with a state of one request, (...), by one token."""

    def __init__(self, **inputs: Tensor) -> None:
        self.inputs = {name: x.double() for name, x in inputs.items()}

    def __call__(self, state: Tensor, token: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Convolution(Step):
    def __call__(self, state: Tensor, token: int) -> tuple[Tensor, Tensor]:
        x, weight, bias = (self.inputs[name] for name in ("x", "weight", "bias"))
        state = torch.cat([state[:, 1:], x[token, :, None]], dim=1)
        return state, F.silu((state * weight).sum(1) + bias)


@pytest.mark.parametrize("of", [DECODES, ENTRIES], ids=["decodes", "prompts"])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_convolution(case: tuple[ModuleType, torch.dtype], is_transposed: bool, of: Entries) -> None:
    kernels, dtype = case
    x = randn(PADDED, 40, dtype=dtype)
    weight, bias, memory = randn(40, 4, dtype=dtype), randn(40, dtype=dtype), randn(SLOTS, 40, 4, dtype=dtype)
    out, states = one_by_one(memory, Convolution(x=x, weight=weight, bias=bias), of)
    x = x.t().contiguous().t() if is_transposed else torch.cat([x, x], dim=1)[:, :40]
    found = kernels.convolve(x, weight, bias, True, memory, *numbers(of))
    close(found[: len(out)], out)
    assert not found[len(out) :].any()
    close(memory, states)


class DeltaRule(Step):
    def __call__(self, state: Tensor, token: int) -> tuple[Tensor, Tensor]:
        q, k, v, g, beta = (self.inputs[name][token] for name in ("q", "k", "v", "g", "beta"))
        q, k = (F.normalize(x, dim=-1, eps=0).repeat_interleave(len(v) // len(x), dim=0) for x in (q, k))
        state = state * g.exp().reshape(len(v), -1, 1)
        state = state + k[:, :, None] * ((v - (state * k[:, :, None]).sum(1)) * beta[:, None])[:, None]
        return state, (state * q[:, :, None]).sum(1) / q.shape[1] ** 0.5


@pytest.mark.parametrize("way", ["decays of channels", "token by token", "in chunks", "gates", "gates in chunks"])
def test_delta_rule(case: tuple[ModuleType, torch.dtype], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With half as many heads of keys as of values, which come in several parts, and keys that are alike."""
    kernels, dtype = case
    monkeypatch.setattr(of_gpu, "_TILE", 512)
    for module in (entries, delta_chunks):
        monkeypatch.setattr(module, "CHUNK", 16)
    heads, k_dim, v_dim, in_chunks = 2, 12, 40, "in chunks" in way
    if DEVICE.type == "cpu":  # where products of float32 are exact
        monkeypatch.setattr(of_gpu, "CHUNKED", (dtype,))
    row = randn(PADDED, 120, dtype=dtype)
    row[:, k_dim : 2 * k_dim] += 2
    q, k, v, x, y = row[:, : 2 * k_dim + heads * (v_dim + 2)].split([k_dim, k_dim, heads * v_dim, heads, heads], dim=1)
    q, k, v = q[:, None], k[:, None], v.view(PADDED, heads, v_dim)
    g, beta, gates = -0.1 * randn(PADDED, heads, *[k_dim] * (way == "decays of channels")).abs(), y.sigmoid(), None
    memory = randn(SLOTS, heads, k_dim, v_dim)
    expected = {"q": q, "k": k, "v": v, "g": g, "beta": beta}
    if "gates" in way:
        g, beta, gates = x, y, (randn(heads), randn(heads))
        expected["g"] = -gates[0].double().exp() * F.softplus(x.double() + gates[1].double())
        expected["beta"] = y.double().sigmoid()
    out, states = one_by_one(memory, DeltaRule(**expected))
    entry_numbers, _, chunks = numbers(ENTRIES)
    found = kernels.delta_rule(
        q, k, v, g, beta, True, memory, entry_numbers, chunks if in_chunks else chunks[:0], gates
    )
    close(found[: len(out)], out, factor=4 if in_chunks else 2)
    tolerance = 4e-3 if in_chunks and dtype is not torch.float32 else 4e-6
    assert (memory.double() - states).abs().max() <= tolerance * states.abs().max()


class Scan(Step):
    def __call__(self, state: Tensor, token: int) -> tuple[Tensor, Tensor]:
        x, dt, b, c = (self.inputs[name][token] for name in ("x", "dt", "b", "c"))
        b, c = (y.repeat_interleave(len(x) // len(y), dim=0)[:, None] for y in (b, c))
        dt = F.softplus(dt + self.inputs["dt_bias"]).clamp(0.01, 1.5)
        state = state * (dt * self.inputs["a"]).exp()[:, None, None] + (dt[:, None] * x)[:, :, None] * b
        return state, (state * c).sum(2) + x * self.inputs["d"][:, None]


def test_scan(case: tuple[ModuleType, torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, dtype = case
    monkeypatch.setattr(of_gpu, "_TILE", 256)
    heads, groups, dim, size = 2, 1, 20, 12
    x, dt = randn(PADDED, heads, dim, dtype=dtype), randn(PADDED, heads, dtype=dtype)
    b, c = (randn(PADDED, groups, size, dtype=dtype) for _ in range(2))
    a, d, dt_bias, memory = -randn(heads).abs(), randn(heads), randn(heads), randn(SLOTS, heads, dim, size)
    out, states = one_by_one(memory, Scan(x=x, dt=dt, b=b, c=c, a=a, d=d, dt_bias=dt_bias))
    found = kernels.scan(x, dt, a, b, c, d, dt_bias, True, (0.01, 1.5), memory, numbers(ENTRIES)[0])
    close(found[: len(out)], out)
    close(memory, states)
