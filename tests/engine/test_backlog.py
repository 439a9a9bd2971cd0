"""Counts of waiting requests, by tenant, and the time after which clients should retry."""

from app.core.sampling import SamplingParams
from app.core.wire import GenerateCommand
from app.engine.backlog import Backlog


def command(name: str, tenant: str = "a", length: int = 5) -> GenerateCommand:
    sampling = SamplingParams(max_tokens=1, seed=0)
    return GenerateCommand(
        request_id=name, prompt_token_ids=[1] * length, sampling=sampling, tenant=tenant, arrived_at=0.0
    )


def test_it_counts_requests_and_tokens_until_they_are_served_or_gone() -> None:
    backlog = Backlog()
    backlog.enter(command("1", "a", 5))
    backlog.enter(command("2", "b", 7))
    assert (backlog.num_tokens, backlog.by_tenant["a"], backlog.by_tenant["b"]) == (12, 1, 1)
    assert backlog.tokens_by_tenant == {"a": 5, "b": 7}
    backlog.leave("1", was_served=True)
    backlog.leave("1", was_served=True)  # its second token
    backlog.leave("2", was_served=False)
    assert (backlog.num_tokens, backlog.by_tenant.total(), backlog.tokens_by_tenant.total()) == (0, 0, 0)


def test_retry_after_is_the_time_in_which_half_of_the_queue_is_served() -> None:
    now = [100.0]
    backlog = Backlog(lambda: now[0])
    assert backlog.retry_after == 1
    for index in range(60):
        backlog.enter(command(str(index)))
    assert backlog.retry_after == 5  # a guess: no rate is known yet
    for index in range(20):  # two a second
        now[0] += 0.5
        backlog.leave(str(index), was_served=True)
    assert backlog.retry_after == 10  # 40 wait
    now[0] += 33.0
    assert backlog.retry_after == 33  # nothing moves
    now[0] += 60.0
    assert backlog.retry_after == 60


def test_a_burst_after_a_silence_is_told_the_last_rate_for_at_most_five_seconds() -> None:
    now = [100.0]
    backlog = Backlog(lambda: now[0])
    backlog.enter(command("first"))
    now[0] += 0.1
    backlog.leave("first", was_served=True)  # one a second, as far as is known
    now[0] += 1000.0
    for index in range(6):
        backlog.enter(command(str(index)))
    assert backlog.retry_after == 3
    for index in range(6, 1000):
        backlog.enter(command(str(index)))
    assert backlog.retry_after == 5
    now[0] += 0.5
    for index in range(100):  # in one step
        backlog.leave(str(index), was_served=True)
    assert backlog.retry_after == 5  # 900 wait: half of them take 4.5 s
