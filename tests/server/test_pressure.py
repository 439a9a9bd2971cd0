"""Overload, and tenants that compete with each other, with real server processes."""

import os
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import web
from tests.patience import PATIENCE, wait_until
from tests.server.keys import write_keys
from tests.server.process import Server, popen, running_server
from tests.server.test_encoders import write_tokenizer
from tests.worker.test_encoder_runner import write_encoder

TLS = httpx.create_ssl_context()  # takes a while, and is not used
LONG = {"prompt": "Once upon a time", "max_tokens": 30000, "ignore_eos": True}
"""More than anything that is done meanwhile takes."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> str:
    tenants: dict[str, dict[str, Any]] = {
        "flood": {"max_queued_requests": 40},
        "narrow": {"max_queued_requests": 2},
        "short": {"max_queued_tokens": 300},
        "quiet": {},
        "open-1": {"share_prefixes": True},
        "open-2": {"share_prefixes": True},
    }
    return str(write_keys(tmp_path_factory.mktemp("keys"), tenants))


@pytest.fixture(scope="module")
def small(tiny_model: Path) -> tuple[str, ...]:
    """Flags of a server with two rows."""
    return ("--model", str(tiny_model), "--max-num-seqs", "2")


@pytest.fixture(scope="module")
def crowd(small: tuple[str, ...], keys: str) -> Iterator[Server]:
    """A server with two rows and several tenants, with public metrics."""
    arguments = (*small, "--max-queue", "100", "--request-timeout", "60", "--api-keys", keys, "--public-metrics")
    with running_server(*arguments) as running:
        yield running


@pytest.fixture(scope="module")
def echo(keys: str) -> Iterator[Server]:
    with running_server("--worker", "echo", "--api-keys", keys) as running:
        yield running


def ask(server: Server, body: Any, tenant: str = "-", path: str = "/v1/completions", **headers: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {tenant}", **headers}
    return web.post(server.url + path, json=body, headers=headers, verify=TLS)


def rejected(server: Server, reason: str) -> float:
    found = re.search(rf'requests_rejected_total{{reason="{reason}"}} (\S+)', server.get("/metrics").text)
    return float(found[1]) if found else 0.0


def is_listening(server: Server) -> bool:
    try:
        server.get("/health")
    except httpx.ConnectError:
        return False
    return True


def is_idle(server: Server) -> bool:
    return not any(map(server.metric, ("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio")))


def refusals(answers: list[httpx.Response], code: str, num_tokens: int) -> int:
    """How many were refused, all for the same reason; the others got all of their tokens."""
    assert {answer.status_code for answer in answers} == {200, 429}
    count = 0
    for answer in answers:
        if answer.status_code == 200:
            assert answer.json()["usage"]["completion_tokens"] == num_tokens
        else:
            assert answer.json()["error"]["code"] == code
            assert int(answer.headers["retry-after"]) >= 1
            count += 1
    return count


@contextmanager
def flooded(server: Server, tenant: str, bodies: list[Any]) -> Iterator[list[int]]:
    """Open streams of a tenant, which are broken off at the end; gives the indices of those that have ended."""
    ended: list[int] = []
    is_over = threading.Event()

    def read(index: int) -> None:
        headers = {"Authorization": f"Bearer {tenant}"}
        body = {**bodies[index], "stream": True}
        with web.stream("POST", f"{server.url}/v1/completions", json=body, headers=headers) as stream:
            assert stream.status_code == 200
            for _ in stream.iter_lines():  # a comment each second, if nothing else
                if is_over.is_set():
                    return
        ended.append(index)

    with ThreadPoolExecutor(len(bodies)) as pool:
        readers = [pool.submit(read, index) for index in range(len(bodies))]
        try:
            count = len(bodies)
            wait_until(lambda: server.metric("num_requests_running") + server.metric("num_requests_waiting") == count)
            yield ended
        finally:
            is_over.set()
            for reader in as_completed(readers):
                reader.result()


def test_beyond_rows_and_queue_clients_are_told_when_to_come_back(small: tuple[str, ...]) -> None:
    body = {**LONG, "max_tokens": 60}
    with running_server(*small, "--max-queue", "4") as server, ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: ask(server, body), range(200)))
        assert rejected(server, "queue_full") == refusals(answers, "queue_full", 60)
        served = sum(answer.is_success for answer in answers)
        assert served >= 6
        wait_until(lambda: is_idle(server))
        with flooded(server, "-", [LONG] * 6):
            wait_until(lambda: server.metric("time_to_first_token_seconds_count") == served + 2)
            # Half of the four that wait, at the rate since they wait: two have begun, within a second or up to ten.
            assert 1 <= int(ask(server, LONG).headers["retry-after"]) <= 10
        wait_until(lambda: is_idle(server))


def test_the_queue_is_bounded_in_tokens(small: tuple[str, ...]) -> None:
    body = {**LONG, "prompt": [100] * 100, "max_tokens": 60}
    with running_server(*small, "--max-queue-tokens", "300") as server, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask(server, body), range(60)))
        assert rejected(server, "queue_full") == refusals(answers, "queue_full", 60)
        assert sum(answer.is_success for answer in answers) >= 3
        wait_until(lambda: is_idle(server))


@pytest.mark.parametrize("tenant", ["narrow", "short"])  # in requests, in tokens
def test_a_tenants_own_queue_is_full_for_it_alone(crowd: Server, tenant: str) -> None:
    body = {**LONG, "prompt": [100] * 100, "max_tokens": 60}
    before = rejected(crowd, "tenant_queue_full")
    with ThreadPoolExecutor(20) as pool:
        flood = [pool.submit(ask, crowd, body, tenant) for _ in range(40)]
        others = [pool.submit(ask, crowd, body, "quiet") for _ in range(10)]
        assert {other.result().status_code for other in others} == {200}
        count = refusals([one.result() for one in flood], "tenant_queue_full", 60)
    assert rejected(crowd, "tenant_queue_full") == before + count
    wait_until(lambda: is_idle(crowd))


def test_a_flood_does_not_hold_up_another_tenant(crowd: Server) -> None:
    with flooded(crowd, "flood", [{**LONG, "prompt": f"{index} and"} for index in range(32)]) as ended:
        for _ in range(3):
            before = len(ended)
            answer = ask(crowd, {"prompt": "Hi", "max_tokens": 4, "ignore_eos": True}, "quiet")
            assert answer.json()["usage"]["completion_tokens"] == 4
            # In turn of arrival it would come after all 32; one may end by itself meanwhile.
            assert len(ended) - before <= 1
    wait_until(lambda: is_idle(crowd))


def test_a_request_that_waits_too_long_is_taken_out_of_the_queue(crowd: Server) -> None:
    before = rejected(crowd, "deadline")
    with flooded(crowd, "flood", [LONG, LONG]) as ended:
        late = ask(crowd, LONG, "flood", **{"X-Request-Timeout": "0.3"})
        assert (late.status_code, late.json()["error"]["type"]) == (504, "timeout")
        wait_until(lambda: crowd.metric("num_requests_waiting") == 0)
        assert crowd.metric("num_requests_running") + len(ended) == 2
    wait_until(lambda: is_idle(crowd))
    assert rejected(crowd, "deadline") == before + 1


def test_the_servers_own_deadline_ends_what_runs_and_what_waits(small: tuple[str, ...]) -> None:
    with running_server(*small, "--request-timeout", "2") as server, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(server, {**LONG, "n": 2}), range(4)))
        assert Counter(answer.status_code for answer in answers) == {504: 4}
        wait_until(lambda: is_idle(server))
        assert rejected(server, "deadline") == 4
        assert ask(server, {"prompt": "Hi", "max_tokens": 1}).is_success


def test_an_encoders_call_has_a_deadline(tmp_path: Path) -> None:
    write_encoder(tmp_path, "Bert", "Model", vocab_size=258)
    write_tokenizer(tmp_path)
    with running_server("--model", str(tmp_path)) as server:
        body = {"input": ["word " * 10] * 8000}
        late = ask(server, body, path="/v1/embeddings", **{"X-Request-Timeout": "0.5"})
        assert (late.status_code, late.json()["error"]["type"]) == (504, "timeout")
        wait_until(lambda: server.metric("num_requests_waiting") == 0)
        assert rejected(server, "deadline") == 1
        assert ask(server, {"input": "word"}, path="/v1/embeddings").is_success


def test_what_is_stored_for_one_tenant_is_hidden_from_others(echo: Server) -> None:
    stored = ask(echo, {"input": "a secret"}, "quiet", "/v1/responses").json()["id"]
    streamed = ask(echo, {"prompt": "a secret", "stream": True}, "quiet", **{"X-Resumable": "true"})

    def answers(tenant: str, response: str, stream: str) -> list[tuple[int, str]]:
        headers = {"Authorization": f"Bearer {tenant}"}
        found = [
            ask(echo, {"input": "Hi", "previous_response_id": response}, tenant, "/v1/responses"),
            web.get(f"{echo.url}/v1/streams/{stream}", headers=headers),
            web.get(f"{echo.url}/v1/responses/{response}", headers=headers),
            web.delete(f"{echo.url}/v1/responses/{response}", headers=headers),
        ]
        return [(answer.status_code, answer.text.replace(response, "X")) for answer in found]

    stream = streamed.headers["x-request-id"]
    strangers = answers("flood", stored, stream)
    assert [status for status, _ in strangers] == [400, 404, 404, 404]
    assert strangers == answers("flood", "resp_never", "never")
    assert [status for status, _ in answers("quiet", stored, stream)] == [200] * 4


def test_only_tenants_that_agree_share_prefixes(echo: Server) -> None:
    def cached(tenant: str) -> int:
        usage = ask(echo, {"prompt": "the same beginning " * 50, "max_tokens": 1}, tenant).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert [cached(tenant) > 0 for tenant in ("open-1", "open-2", "quiet", "quiet")] == [False, True, False, True]


def test_a_server_that_loads_or_drains_counts_what_it_refuses(tiny_model: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # It says where it is only when it is ready.
    with popen("-m", "app.cli", "serve", "--port", str(port), "--model", str(tiny_model)) as process:
        server = Server(process)
        server.url = f"http://127.0.0.1:{port}"
        wait_until(lambda: "engine" in server.children())
        engine = server.children()["engine"]
        os.kill(engine, signal.SIGSTOP)  # so that it loads for as long as needed
        wait_until(lambda: is_listening(server))
        assert ask(server, LONG).status_code == 503
        assert rejected(server, "loading") == 1
        os.kill(engine, signal.SIGCONT)
        server.wait_for("ready at")
        with flooded(server, "-", [LONG]):
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.get("/health/ready").json() == {"status": "draining"})
            assert ask(server, LONG).status_code == 503
            assert rejected(server, "draining") == 1
        assert process.wait(timeout=PATIENCE) == 0
