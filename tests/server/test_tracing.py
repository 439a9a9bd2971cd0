"""The traces that a collector gets from a real server, and what tracing costs without a collector."""

import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests import web
from tests.patience import PATIENCE
from tests.server.collector import Collector, attributes, running_collector
from tests.server.keys import write_keys
from tests.server.process import REPOSITORY, Server, run, running_server
from tests.server.test_encoders import write_tokenizer
from tests.worker.test_encoder_runner import write_encoder

MODEL = "SmolLM2-135M-Instruct"
SECRET = "marzipan"
"""In every prompt, and so in what the echo worker answers."""
LONG = {"n": 16, "max_tokens": 8000}
"""More than can be done in half a second."""
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "20"}
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


@pytest.fixture(scope="module")
def server(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = write_keys(tmp_path_factory.mktemp("keys"), {"wide": {}, "narrow": {"requests_per_minute": 1}})
    with running_server(
        *("--worker", "echo", "--api-keys", str(keys), "--otlp-traces-endpoint", collector.endpoint),
        **SOON,
        OTEL_SERVICE_NAME="words",
    ) as running:
        yield running


def headers(request_id: str, tenant: str = "wide", **more: str) -> dict[str, str]:
    return {"X-Request-ID": request_id, "Authorization": f"Bearer {tenant}", **more}


def ask(server: Server, request_id: str, path: str = "completions", body: Any = None, **more: str) -> httpx.Response:
    if path == "completions":
        body = {"prompt": SECRET, "max_tokens": 5} | (body or {})
    return web.post(f"{server.url}/v1/{path}", json=body, headers=headers(request_id, **more))


def check_nesting(request: Span, phases: list[Span]) -> None:
    """Check that queue, prefill and decode follow each other inside the request's span."""
    assert [span.name for span in phases] == ["queue", "prefill", "decode"]
    queue, prefill, decode = phases
    assert request.start_time_unix_nano == queue.start_time_unix_nano
    for before, after in ((queue, prefill), (prefill, decode)):
        assert before.start_time_unix_nano < before.end_time_unix_nano == after.start_time_unix_nano
    assert decode.start_time_unix_nano < decode.end_time_unix_nano <= request.end_time_unix_nano
    for span in phases:
        assert (span.trace_id, span.kind) == (request.trace_id, Span.SPAN_KIND_INTERNAL)


def test_a_streamed_request(server: Server, collector: Collector) -> None:
    body = {
        "messages": [{"role": "user", "content": SECRET}],
        "max_tokens": 40,
        "ignore_eos": True,
        "temperature": 0.5,
        "top_p": 0.75,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "shop=cart7,other=1"}
    began_at = time.time_ns()
    answer = web.post(f"{server.url}/v1/chat/completions", json=body, headers=headers("streamed", **sent))
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    usage = events[-1]["usage"]

    span = collector.request("streamed")
    ended_at = time.time_ns()
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, CALLER)
    assert span.trace_state == sent["tracestate"]
    assert (span.name, span.kind) == (f"chat {MODEL}", Span.SPAN_KIND_SERVER)
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert began_at < span.start_time_unix_nano < span.end_time_unix_nano < ended_at
    check_nesting(span, collector.phases(span))
    found = attributes(span.attributes)
    latency = {name: found.pop(f"gen_ai.latency.{name}") for name in LATENCIES}
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "paceline",
        "gen_ai.request.id": "streamed",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 40,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.75,
        "gen_ai.request.frequency_penalty": 0,
        "gen_ai.request.presence_penalty": 0,
        "gen_ai.request.stream": True,
        "gen_ai.response.id": events[0]["id"],
        "gen_ai.response.model": MODEL,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": 40,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/chat/completions",
        "paceline.tenant": "wide",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
    }
    inside = [latency[name] for name in ("time_in_queue", "time_in_model_prefill", "time_in_model_decode")]
    assert min(inside) > 0
    assert latency["time_in_model_inference"] == pytest.approx(sum(inside[1:]))
    assert latency["time_to_first_token"] >= sum(inside[:2])  # the API has it a little later than the engine
    assert sum(inside) <= latency["e2e"] < (ended_at - began_at) / 1e9


LATENCIES = (
    "e2e",
    "time_in_queue",
    "time_in_model_prefill",
    "time_in_model_decode",
    "time_in_model_inference",
    "time_to_first_token",
)


def test_a_whole_request_with_choices(server: Server, collector: Collector) -> None:
    answer = ask(server, "whole", body={"n": 2, "max_tokens": 7}).json()
    span = collector.request("whole")
    assert (span.name, span.parent_span_id) == (f"text_completion {MODEL}", b"")
    phases: dict[Any, list[Span]] = {}
    for phase in collector.phases(span):
        phases.setdefault(attributes(phase.attributes)["paceline.index"], []).append(phase)
    assert phases.keys() == {0, 1}
    for of_choice in phases.values():
        check_nesting(span, of_choice)
    found = attributes(span.attributes)
    assert found["gen_ai.request.choice.count"] == 2
    assert found["gen_ai.request.stream"] is False
    assert found["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert found["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"] == 14
    assert found["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    resource = attributes(collector.exports[0].resource_spans[0].resource.attributes)
    assert resource["service.name"] == "words"


def test_what_is_refused(server: Server, collector: Collector) -> None:
    def check(request_id: str, status: int, kind: str, is_failure: bool, has_begun: bool = False) -> None:
        span = collector.request(request_id)
        found = attributes(span.attributes)
        assert (found["http.response.status_code"], found["error.type"]) == (status, kind)
        assert span.status.code == (Status.STATUS_CODE_ERROR if is_failure else Status.STATUS_CODE_UNSET)
        assert span.name == (f"text_completion {MODEL}" if has_begun else "text_completion")
        assert has_begun or not collector.phases(span)

    assert ask(server, "bad", body={"max_tokens": SECRET}).status_code == 400
    check("bad", 400, "invalid_request_error", is_failure=False)
    assert ask(server, "stranger", tenant="nobody").status_code == 401
    check("stranger", 401, "invalid_api_key", is_failure=False)
    assert [ask(server, f"often-{i}", tenant="narrow").status_code for i in range(2)] == [200, 429]
    check("often-1", 429, "rate_limit_exceeded", is_failure=False)
    late = ask(server, "late", body=LONG, **{"X-Request-Timeout": "0.5"})
    assert late.status_code == 504
    check("late", 504, "request_timeout", is_failure=True, has_begun=True)
    assert attributes(collector.request("late").attributes)["gen_ai.response.finish_reasons"].count("timeout") == 1


def test_a_stream_that_fails_or_is_left(server: Server, collector: Collector) -> None:
    late = ask(server, "late-stream", body={**LONG, "stream": True}, **{"X-Request-Timeout": "0.5"})
    assert late.status_code == 200  # it had begun
    span = collector.request("late-stream")
    assert attributes(span.attributes)["error.type"] == "request_timeout"
    assert span.status.code == Status.STATUS_CODE_ERROR

    request = {"prompt": SECRET, "ignore_eos": True, "max_tokens": 8000, "stream": True}
    with web.stream("POST", f"{server.url}/v1/completions", json=request, headers=headers("left")) as stream:
        next(stream.iter_lines())
    span = collector.request("left")
    found = attributes(span.attributes)
    assert found["gen_ai.response.finish_reasons"] == ["abort"]
    assert 0 < found["gen_ai.usage.output_tokens"] < 8000
    assert (span.status.code, "error.type" in found) == (Status.STATUS_CODE_UNSET, False)
    check_nesting(span, collector.phases(span))


def test_unsampled_requests_and_requests_without_a_model_have_no_spans(server: Server, collector: Collector) -> None:
    assert ask(server, "unsampled", traceparent=f"00-{TRACE}-{CALLER}-00").status_code == 200
    assert web.get(f"{server.url}/v1/models", headers=headers("models")).status_code == 200
    assert ask(server, "sampled", traceparent=f"00-{TRACE}-{CALLER}-01").status_code == 200
    collector.request("sampled")
    sent = b"".join(collector.bodies)
    assert b"unsampled" not in sent
    assert b"/v1/models" not in sent


def test_no_text_is_exported(server: Server, collector: Collector) -> None:
    assert SECRET in ask(server, "told", body={"max_tokens": 20}).json()["choices"][0]["text"]
    collector.request("told")
    stored = ask(server, "stored", "responses", {"input": SECRET, "max_output_tokens": 16}).json()
    collector.request("stored")
    sent = b"".join(collector.bodies)
    assert SECRET.encode() not in sent
    assert stored["id"].encode() not in sent  # who knows it can read the answer


def test_many_inputs_of_an_encoder_are_one_and_reach_the_collector_at_the_end(tmp_path: Path) -> None:
    write_encoder(tmp_path, "Bert", "Model", vocab_size=258)
    write_tokenizer(tmp_path)
    with running_collector() as collector:
        arguments = ("--model", str(tmp_path), "--served-model-name", "tiny")
        with running_server(*arguments, "--otlp-traces-endpoint", collector.endpoint) as server:
            body = {"input": [SECRET] * 100}
            sent = {"X-Request-ID": "many"}
            answer = web.post(f"{server.url}/v1/embeddings", json=body, headers=sent)
        # Not a batch's 5 seconds later, but when the server ended.
        span = collector.request("many")
        assert span.name == "embeddings tiny"
        queue, prefill = collector.phases(span)
        assert (queue.name, prefill.name) == ("queue", "prefill")
        assert span.start_time_unix_nano == queue.start_time_unix_nano < queue.end_time_unix_nano
        assert queue.end_time_unix_nano == prefill.start_time_unix_nano < prefill.end_time_unix_nano
        assert prefill.end_time_unix_nano <= span.end_time_unix_nano
        found = attributes(span.attributes)
        assert found["gen_ai.usage.input_tokens"] == answer.json()["usage"]["prompt_tokens"]
        assert SECRET.encode() not in b"".join(collector.bodies)


@contextmanager
def black_hole() -> Iterator[str]:
    """The endpoint of a collector that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/v1/traces"


def test_a_collector_that_does_not_answer_is_not_waited_for() -> None:
    with black_hole() as endpoint:
        environment = {**SOON, **SAYS_IMPORTS, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": f"{100 * PATIENCE:.0f}"}
        with running_server("--worker", "echo", "--otlp-traces-endpoint", endpoint, **environment) as server:
            for _ in range(20):
                assert server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 5}).status_code == 200
            assert libraries_of_traces(server)
        # It has ended within the tests' patience, and its exit code was 0.


def test_no_library_is_imported_without_an_endpoint() -> None:
    with running_server("--worker", "echo", **SAYS_IMPORTS) as server:
        server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 5})
        assert libraries_of_traces(server) == []


SAYS_IMPORTS = {"PYTHONPROFILEIMPORTTIME": "1"}


def libraries_of_traces(server: Server) -> list[str]:
    """What its processes have imported to send traces, if they say what they import.

    FastAPI itself imports OpenTelemetry's API, which does nothing alone.
    """
    server.wait_for("POST /v1/completions 200")
    log = "".join(server.log)
    assert re.search(r"\| +app\.api\.edge\.middleware\n", log)
    return re.findall(
        r"\| +(opentelemetry\.(?:sdk|exporter)\.\S+|google\.protobuf\.\S+|app\.api\.edge\.tracing)\n", log
    )


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    hidden = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{hidden!r}] = None\n")
    arguments = ("--worker", "echo", "--port", "0", "--otlp-traces-endpoint", "http://127.0.0.1:1/v1/traces")
    code, _, log = run("-m", "app.cli", "serve", *arguments, PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    assert code == 2
    assert "otlp_traces_endpoint: " in log
    assert hidden in log
    assert f"{sys.executable} -m pip install opentelemetry-exporter-otlp-proto-http" in log
    assert "Traceback" not in log
