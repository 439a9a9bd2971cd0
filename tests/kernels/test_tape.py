"""Recorded work of the CPU against the same work done again, and the threads that do it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from app.kernels import ops
from app.kernels.cpu.kernel import kernel
from app.kernels.cpu.tape import NotRecordableError, Tapes

pytestmark = pytest.mark.usefixtures("compiled_kernels", "two_threads")


@kernel
def add_all_of_before(begin, end, numbers, stage):  # type: ignore[no-untyped-def]
    """A number of a stage, which is one column, becomes the sum of the whole stage before it, plus its place."""
    for task in range(begin, end):
        total = task
        for other in range(numbers.shape[0]):
            total += numbers[other, stage - 1]
        numbers[task, stage] = total % 65521


def stages(count: int, tasks: int) -> Tensor:
    """What `add_all_of_before` makes of ones, stage by stage."""
    numbers = torch.ones(tasks, count, dtype=torch.int64)
    for stage in range(1, count):
        numbers[:, stage] = (numbers[:, stage - 1].sum() + torch.arange(tasks)) % 65521
    return numbers


@pytest.mark.parametrize("tasks", [1, 2, 7, 50])
def test_an_operation_begins_when_those_before_it_are_done(tasks: int) -> None:
    numbers = torch.ones(tasks, 400, dtype=torch.int64)

    def work() -> None:
        for stage in range(1, numbers.shape[1]):
            add_all_of_before(tasks, stage % 3 > 0, numbers, stage)  # some of them by one thread

    tapes = Tapes()
    tapes.record("stages", work)
    expected = stages(400, tasks)
    assert torch.equal(numbers, expected)
    for _ in range(20):
        numbers[:, 1:] = -1
        tapes.replay("stages")
        assert torch.equal(numbers, expected)


def layer(x: Tensor, positions: Tensor, table: Tensor, weight: Tensor, out: Tensor) -> None:
    """Kernels, and operations of torch: views, results of their own, changes in place, several results."""
    stream = x.clone()
    for _ in range(3):
        normed = ops.rms_norm(x, weight, 0.0, 1e-5, stream)
        gate, up = (normed * table[positions]).chunk(2, dim=-1)
        x = torch.cat((ops.gated(torch.cat((gate, up), dim=-1), "silu"), gate.sort(dim=-1).values), dim=-1)
        x += 0.5
    out[: len(x)].copy_(ops.rms_norm(x, weight, 1.0, 1e-5))


def test_what_is_replayed_is_what_would_be_done_again() -> None:
    torch.manual_seed(0)
    table, weight, out = torch.randn(50, 64), torch.randn(64), torch.zeros(8, 64)
    inputs = {rows: (torch.randn(rows, 64), torch.zeros(rows, dtype=torch.int64)) for rows in (1, 5, 8)}
    tapes = Tapes()
    for rows, given in inputs.items():
        tapes.record(rows, lambda given=given: layer(*given, table, weight, out))  # type: ignore[misc]
    for _ in range(5):
        for rows, (x, positions) in inputs.items():
            x.normal_()
            positions.random_(50)
            tapes.replay(rows)
            replayed = out[:rows].clone()
            layer(x, positions, table, weight, out)
            assert torch.equal(replayed, out[:rows])


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x * float(x.sum()),
        lambda x: x[x > 0].exp(),
        lambda x: x.nonzero() + 1,
        lambda x: x + 1 if x.sum() > 0 else x - 1,
        lambda x: x * x.tolist()[0],
        lambda x: x + torch.from_numpy(x.numpy() * 2),
    ],
    ids=["a number", "a mask", "places", "a branch", "a list", "an array"],
)
def test_work_that_looks_at_what_it_computes_is_not_recorded(work: Callable[[Tensor], Tensor]) -> None:
    tapes = Tapes()
    with pytest.raises(NotRecordableError):
        tapes.record("work", lambda: work(torch.randn(4)))
    assert "work" not in tapes


def test_tapes_share_the_memory_of_what_is_computed_on_the_way() -> None:
    tapes, out = Tapes(), torch.zeros(64)

    def work(rows: int) -> None:
        x = out[:rows]
        for _ in range(5):
            x = (x.view(1, -1) * torch.ones(50_000, 1)).sum(0) + 1  # 13 MB on the way, at most
        out[:rows].copy_(x)

    for rows in range(8, 65, 8):  # 78 MB, if each tape had its own
        tapes.record(rows, lambda rows=rows: work(rows))  # type: ignore[misc]
    assert tapes._arena is not None
    assert tapes._arena._used < 2**26
