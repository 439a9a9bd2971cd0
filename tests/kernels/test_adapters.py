"""What adapters add to a layer's outputs, on each device, against plain torch in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from app.kernels import ops
from app.kernels.adapters import Adapters

pytest.importorskip("triton")

from app.kernels.gpu import adapters as gpu
from app.kernels.gpu import linear
from tests.kernels.test_gpu import DEVICE, HALF, close, randn

pytestmark = pytest.mark.usefixtures("compiled_kernels", "two_threads")
SIZES = [(40,), (24, 24), (64, 16, 16), (1000, 72)]
SLOTS = 3
MANY = 1100 if DEVICE.type == "cuda" else 40
CPU = torch.device("cpu")


def make(
    sizes: tuple[int, ...], inputs: int, rank: int, dtype: torch.dtype, device: torch.device, invariant: bool = False
) -> tuple[Adapters, Callable[[Tensor, Tensor], Tensor]]:
    """Adapters, of which the last has a rank of 5 less and the first leaves the layer as it is; and what they add."""
    parts, outputs = len(sizes), sum(sizes)
    a, b = torch.randn(SLOTS, parts, rank, inputs).to(dtype), torch.randn(SLOTS, outputs, rank).to(dtype)
    a[0], b[0], a[-1, :, rank - 5 :], b[-1, :, rank - 5 :] = 0, 0, 0, 0
    ends = torch.tensor(sizes).cumsum(0)
    of_kernels = b if device.type == "cuda" else b.transpose(1, 2).contiguous()
    ranks = torch.tensor([0, rank, rank - 5], dtype=torch.int32)
    tensors = (tensor.to(device) for tensor in (a.flatten(1, 2), of_kernels, ranks, ends))
    adapters = Adapters(*tensors, sizes, rank, invariant)

    def delta(x: Tensor, slots: Tensor) -> Tensor:
        added = torch.zeros(len(x), outputs, dtype=torch.float64)
        for token, slot in enumerate(slots.tolist()):
            for part, end in enumerate(ends.tolist() if slot >= 0 else []):
                own = slice(end - sizes[part], end)
                added[token, own] = b[slot, own].double() @ (a[slot, part].double() @ x[token].cpu().double())
        return added.to(x.device)

    return adapters, delta


def on_gpu(adapters: Adapters) -> Adapters:
    """As the GPU's kernels read them, which run on a CPU here if there is no GPU."""
    return adapters if DEVICE.type == "cuda" else adapters._replace(b=adapters.b.transpose(1, 2).contiguous())


def some_slots(tokens: int, device: torch.device = DEVICE) -> Tensor:
    return torch.randint(-1, SLOTS, (tokens,), dtype=torch.int32).to(device)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("tokens", "inputs", "rank"), [(1, 70, 8), (19, 256, 16), (70, 96, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_on_a_cpu(sizes: tuple[int, ...], tokens: int, inputs: int, rank: int, dtype: torch.dtype) -> None:
    """float16 has no kernel there, and is left to torch."""
    torch.manual_seed(0)
    adapters, delta = make(sizes, inputs, rank, dtype, CPU)
    x, out, slots = torch.randn(tokens, inputs).to(dtype), torch.randn(tokens, sum(sizes)).to(dtype), some_slots(tokens)
    slots = slots.cpu()
    before, expected = out.clone(), out.double() + delta(x, slots)
    ops.add_adapters(x, adapters, slots, out)
    close(out, expected, 2)
    assert torch.equal(out[slots <= 0], before[slots <= 0])


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, which is slow, more than 20 tokens are many."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(gpu, "_FEW_TOKENS", 20)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("sizes", SIZES if DEVICE.type == "cuda" else SIZES[:3], ids=str)
@pytest.mark.parametrize(("tokens", "inputs", "rank"), [(1, 72, 8), (19, 2100, 16), (MANY, 96, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_on_a_gpu(sizes: tuple[int, ...], tokens: int, inputs: int, rank: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    made, delta = make(sizes, inputs, rank, dtype, DEVICE)
    x, out, slots = randn(tokens, inputs, dtype=dtype), randn(tokens, sum(sizes), dtype=dtype), some_slots(tokens)
    before, added, bias = out.clone(), delta(x, slots), randn(sum(sizes), dtype=dtype)
    shrunk = gpu.shrink(x, on_gpu(made), slots)
    gpu.expand(shrunk, out)
    close(out, before.double() + added, 2)
    assert torch.equal(out[slots < 0], before[slots < 0])
    close(gpu.expanded(shrunk, bias, dtype), added + bias.double(), 2)


@pytest.mark.parametrize("sizes", SIZES if DEVICE.type == "cuda" else SIZES[1:3], ids=str)
@pytest.mark.parametrize(("tokens", "inputs"), [(1, 72), (1, 1500), (3, 520), (33, 264)])
def test_within_a_gpus_products_of_few_rows(sizes: tuple[int, ...], tokens: int, inputs: int) -> None:
    torch.manual_seed(0)
    made, delta = make(sizes, inputs, 8, HALF, DEVICE)
    x, weight = randn(tokens, inputs, dtype=HALF), randn(sum(sizes), inputs, dtype=HALF)
    for slots in (some_slots(tokens), torch.full((tokens,), 1, dtype=torch.int32, device=DEVICE)):
        expected = x.double() @ weight.double().T + delta(x, slots)
        found = linear.skinny(x, weight, None, HALF, gpu.shrink(x, on_gpu(made), slots))
        close(found, expected, 2)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="a library's product of the GPU")
@pytest.mark.parametrize("tokens", [1, 40, 300, 3000])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_whole_layer_on_a_gpu(tokens: int, has_bias: bool) -> None:
    torch.manual_seed(0)
    made, delta = make((512, 128, 128), 512, 16, HALF, DEVICE)
    x, weight, slots = randn(tokens, 512, dtype=HALF), randn(768, 512, dtype=HALF), some_slots(tokens)
    bias = randn(768, dtype=HALF) if has_bias else None
    expected = x.double() @ weight.double().T + delta(x, slots) + (0.0 if bias is None else bias.double())
    close(ops.adapted_linear(x, weight, bias, made, slots), expected, 2)


@pytest.mark.parametrize("sizes", SIZES[1:3], ids=str)
def test_a_token_gets_the_same_in_any_company(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    made, _ = make(sizes, 640, 16, HALF, DEVICE, invariant=True)
    adapters, many = on_gpu(made), 2000 if DEVICE.type == "cuda" else 20
    x, out, slots = randn(many, 640, dtype=HALF), randn(many, sum(sizes), dtype=HALF), some_slots(many)
    crowd = out.clone()
    gpu.expand(gpu.shrink(x, adapters, slots), crowd)
    for count in (1, 2, 17, 33) if DEVICE.type == "cuda" else (1, 17):
        rows = torch.randperm(many)[:count].to(DEVICE)
        alone = out[rows].clone()
        gpu.expand(gpu.shrink(x[rows], adapters, slots[rows]), alone)
        assert torch.equal(alone, crowd[rows]), count
