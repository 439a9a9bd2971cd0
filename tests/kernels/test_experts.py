"""What a mixture of experts does, on the CPU and on a GPU (or in Triton's interpreter), against float64."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from app.kernels import ops
from app.kernels.cpu import experts as cpu
from app.kernels.gpu import experts as gpu
from app.kernels.gpu import float8, integer, linear
from app.kernels.routes import Routes
from app.layers.methods.mxfp4 import Mxfp4
from app.layers.methods.plain import PLAIN
from app.layers.moe import Stacked
from tests.kernels import test_gpu_float8, test_gpu_integer
from tests.kernels.test_gpu import DEVICE, HALF, close, randn, rounding

__all__ = ["rounding"]  # a fixture that all tests use

pytestmark = [
    pytest.mark.usefixtures("compiled_kernels"),
    pytest.mark.filterwarnings("ignore:overflow encountered"),
    pytest.mark.filterwarnings("ignore:invalid value encountered"),
]
NUM_EXPERTS, TOP_K = 5, 3  # neither is a power of two
OUTPUTS = 34
"""Of an expert: no whole number of tiles."""
ROWS = pytest.mark.parametrize(("tokens", "of_pairs"), [(1, False), (1, True), (3, False), (40, True)])
"""One row for all experts of a token, or one for each; some experts of many tokens have more rows than a tile."""


def scores_of(tokens: int) -> Tensor:
    """Some experts are chosen by nobody, and some by nearly all."""
    torch.manual_seed(tokens)
    return torch.randn(tokens, NUM_EXPERTS) + torch.tensor([4.0, -9.0, 0.0, 0.0, 0.5])


def expected_routes(scores: Tensor, normalizes: bool) -> tuple[Tensor, Tensor]:
    """Weights in float64 (tokens, experts), zero for those that are not chosen; and the choice, sorted."""
    probabilities = torch.softmax(scores.double(), -1)
    weights, chosen = probabilities.topk(TOP_K)
    if normalizes:
        weights = weights / weights.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(1, chosen, weights), chosen.sort().values


def pairs_of(routes: Routes, expert: int) -> list[int]:
    if routes.pairs.dim() == 2:
        return sorted(routes.pairs[expert, : routes.counts[expert]].tolist())
    first = int(routes.counts[:expert].sum())
    return routes.pairs[first : first + int(routes.counts[expert])].tolist()


@pytest.mark.parametrize("tokens", [1, 2, 70])
@pytest.mark.parametrize("kernels", [cpu, gpu], ids=["cpu", "gpu"])
@pytest.mark.parametrize("normalizes", [True, False])
def test_each_token_goes_to_its_best_experts(kernels: ModuleType, tokens: int, normalizes: bool) -> None:
    scores = scores_of(tokens)
    device = DEVICE if kernels is gpu else torch.device("cpu")
    chosen = kernels.route(scores.to(device), TOP_K, normalizes)
    again = kernels.routes_of(chosen.experts, chosen.weights, NUM_EXPERTS)
    weights, experts = expected_routes(scores, normalizes)
    for routes in (Routes(*(tensor.cpu() for tensor in chosen)), Routes(*(tensor.cpu() for tensor in again))):
        assert torch.equal(routes.experts.long().sort().values, experts)
        close(torch.zeros(weights.shape).scatter(1, routes.experts.long(), routes.weights), weights)
        for expert in range(NUM_EXPERTS):
            mine = (routes.experts.flatten() == expert).nonzero()[:, 0].tolist()
            assert pairs_of(routes, expert) == mine
            assert routes.counts[expert] == len(mine)


@pytest.mark.parametrize("kernels", [cpu, gpu], ids=["cpu", "gpu"])
def test_scores_that_are_no_numbers_choose_each_expert_once(kernels: ModuleType) -> None:
    scores = torch.full((4, NUM_EXPERTS), float("nan"), device=DEVICE if kernels is gpu else "cpu")
    routes = kernels.route(scores, TOP_K, True)
    assert all(len(set(chosen)) == TOP_K for chosen in routes.experts.tolist())
    assert routes.counts.sum() == 4 * TOP_K


def products(x: Tensor, weight: Tensor, bias: Tensor | None, routes: Routes) -> Tensor:
    """In float64: (pairs, outputs)."""
    rows = x.double().repeat_interleave(routes.num_pairs // len(x), 0)
    chosen = routes.experts.flatten().long()
    of_experts = weight.double().unflatten(0, (NUM_EXPERTS, -1))
    out = torch.einsum("pi,poi->po", rows, of_experts[chosen])
    return out if bias is None else out + bias.double().unflatten(0, (NUM_EXPERTS, -1))[chosen]


@pytest.mark.parametrize("tokens", [1, 2, 16, 40])
@pytest.mark.parametrize("of_pairs", [True, False])
def test_products_of_experts_on_a_cpu(tokens: int, of_pairs: bool) -> None:
    routes = cpu.route(scores_of(tokens), TOP_K, True)
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 2**-7)):
        x = torch.randn(tokens * TOP_K if of_pairs else tokens, 48).to(dtype)
        weight, bias = torch.randn(NUM_EXPERTS * 33, 48).to(dtype), torch.randn(NUM_EXPERTS * 33).to(dtype)
        for added in (None, bias):
            expected = products(x, weight, added, routes)
            error = (ops.grouped(x, weight, added, routes).double() - expected).abs().max()
            assert error <= tolerance * expected.abs().max()


@ROWS
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_products_of_experts_on_a_gpu(tokens: int, of_pairs: bool, dtype: torch.dtype) -> None:
    routes = gpu.route(scores_of(tokens).to(DEVICE), TOP_K, True)
    x = randn(tokens * TOP_K if of_pairs else tokens, 144, dtype=dtype)
    weight, bias = randn(NUM_EXPERTS * OUTPUTS, 144, dtype=dtype), randn(NUM_EXPERTS * OUTPUTS, dtype=dtype)
    close(linear.grouped(x, weight, None, routes), products(x, weight, None, routes))
    close(linear.grouped(x, weight, bias, routes, is_batch_invariant=True), products(x, weight, bias, routes))


@ROWS
@pytest.mark.parametrize(("bits", "group", "is_whole"), [(4, 32, False), (8, 32, True)])
def test_products_of_experts_with_codes(tokens: int, of_pairs: bool, bits: int, group: int, is_whole: bool) -> None:
    routes = gpu.route(scores_of(tokens).to(DEVICE), TOP_K, True)
    weight, dense = test_gpu_integer.a_weight(NUM_EXPERTS * OUTPUTS, 128, group, bits, is_whole)
    x = randn(tokens * TOP_K if of_pairs else tokens, 128, dtype=HALF)
    bias = randn(NUM_EXPERTS * OUTPUTS, dtype=HALF)
    close(integer.grouped(x, weight, bias, routes), products(x, dense, bias, routes), 2)
    if tokens == 1:  # it has a kernel of its own
        close(integer.grouped(x, weight, None, routes, is_batch_invariant=True), products(x, dense, None, routes), 2)


@ROWS
@pytest.mark.parametrize("group", [160, 64])
def test_products_of_experts_in_float8(tokens: int, of_pairs: bool, group: int) -> None:
    routes = gpu.route(scores_of(tokens).to(DEVICE), TOP_K, True)
    weight, stands_for = test_gpu_float8.a_weight(NUM_EXPERTS * OUTPUTS, 160, group)
    x = randn(tokens * TOP_K if of_pairs else tokens, 160, dtype=HALF)
    rounded, bias = float8.quantize(x, group), randn(NUM_EXPERTS * OUTPUTS, dtype=HALF)
    expected = products(test_gpu_float8.dense(rounded, group), stands_for, bias, routes)
    close(float8.grouped(x, weight, bias, routes, is_batch_invariant=True), expected)
    if tokens == 1:  # its activations are not rounded
        close(float8.grouped(x, weight, None, routes), products(x, stands_for, None, routes))


@pytest.mark.skipif(DEVICE.type == "cpu", reason="the interpreter adds up in an order of its own")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_pair_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    scores = scores_of(300).to(DEVICE)
    x, plain = randn(300, 512, dtype=dtype), randn(NUM_EXPERTS * OUTPUTS, 512, dtype=dtype)
    codes, _ = test_gpu_integer.a_weight(NUM_EXPERTS * OUTPUTS, 512, 128, 4, True)
    values, _ = test_gpu_float8.a_weight(NUM_EXPERTS * OUTPUTS, 512, 128)

    def all_products(some: slice) -> list[Tensor]:
        routes = gpu.route(scores[some], TOP_K, True)
        return [
            linear.grouped(x[some], plain, None, routes, is_batch_invariant=True),
            integer.grouped(x[some], codes, None, routes, is_batch_invariant=True),
            float8.grouped(x[some], values, None, routes, is_batch_invariant=True),
        ]

    crowd = all_products(slice(0, 300))
    for some in (slice(7, 8), slice(20, 22), slice(100, 250)):
        for together, alone in zip(crowd, all_products(some), strict=True):
            assert torch.equal(together.unflatten(0, (-1, TOP_K))[some].flatten(0, 1), alone)


@pytest.mark.parametrize("kernels", [cpu, gpu], ids=["cpu", "gpu"])
def test_pairs_are_added_up_by_weight(kernels: ModuleType) -> None:
    device = DEVICE if kernels is gpu else torch.device("cpu")
    x, weights = torch.randn(7 * TOP_K, 100), torch.rand(7, TOP_K)
    expected = (x.double().view(7, TOP_K, 100) * weights.double()[..., None]).sum(1)
    close(kernels.combine(x.to(device), weights.to(device)).cpu(), expected)


def test_a_row_of_router_logits_depends_on_nothing_but_the_row() -> None:
    x, weight = torch.randn(9, 64, dtype=torch.bfloat16), torch.randn(NUM_EXPERTS, 64, dtype=torch.bfloat16)
    whole = cpu.logits(x, weight)
    close(whole, x.double() @ weight.double().T)
    assert torch.equal(torch.cat([cpu.logits(row[None], weight) for row in x]), whole)


@pytest.mark.parametrize(("tokens", "of_pairs"), [(1, False), (3, True), (15, False), (40, True), (90, False)])
def test_products_of_experts_in_mxfp4(tokens: int, of_pairs: bool) -> None:
    """As `app.layers.methods.mxfp4` has a GPU do it, against what a CPU makes of the same file."""
    routes = gpu.route(scores_of(tokens).to(DEVICE), TOP_K, True)
    layer = Stacked(NUM_EXPERTS, 192, (70,), ("up",), bias=True)
    plain = Stacked(NUM_EXPERTS, 192, (70,), ("up",), bias=True)
    blocks = torch.randint(0, 256, (NUM_EXPERTS, 70, 6, 16), dtype=torch.uint8)
    scales = torch.randint(110, 129, (NUM_EXPERTS, 70, 6), dtype=torch.uint8)
    bias = torch.randn(NUM_EXPERTS, 70)
    for one, like, has_kernel in ((layer, randn(0, dtype=HALF), True), (plain, torch.empty(0), False)):
        one.method = Mxfp4(PLAIN, like, has_kernel)
        with torch.device(like.device):
            one.method.create(one)
        sources = one.sources("up")
        for name, tensor in (("up_blocks", blocks), ("up_scales", scales), ("up_bias", bias)):
            assert sources[name].memory.shape == tensor.shape
            sources[name].memory.copy_(tensor)
        one.method.finish(one)
    x = randn(tokens * TOP_K if of_pairs else tokens, 192, dtype=HALF)
    found = layer(x, routes)
    assert isinstance(layer.method, Mxfp4)
    assert plain.method is PLAIN
    chosen = Routes(*(tensor.cpu() for tensor in routes))
    close(found.cpu(), products(x.cpu(), plain.weight, plain.bias, chosen))
