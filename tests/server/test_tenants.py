"""Keys, limits and deadlines, with a real server and OpenAI's own client."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from app import __version__
from app.errors import StartupError
from app.tenants import read_tenants
from tests import web
from tests.server.keys import api_keys, digest, write_keys
from tests.server.process import Server, run, running_server

ALICE, BOB, EVE, OPERATOR = "sk-alice", "sk-bob", "sk-eve", "sk-operator"


TENANTS: dict[str, dict[str, Any]] = {
    "alice": {"keys": [digest(ALICE)], "weight": 2},
    "bob": {"keys": [digest(BOB)], "requests_per_minute": 3},
    "operator": {"keys": [digest(OPERATOR)], "may_operate": True},
    "few": {"keys": [digest("sk-few")], "tokens_per_minute": 20},
}


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_keys(tmp_path_factory.mktemp("keys"), TENANTS)


@pytest.fixture(scope="module")
def server(keys_file: Path) -> Iterator[Server]:
    with running_server("--worker", "echo", "--api-keys", str(keys_file)) as running:
        yield running


def client(server: Server, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def complete(server: Server, key: str, prompt: str = "Hi", max_tokens: int = 2, **options: object) -> str:
    with client(server, key) as own:
        answer = own.completions.create(
            model="SmolLM2-135M-Instruct",
            prompt=prompt,
            max_tokens=max_tokens,
            **options,  # type: ignore[call-overload]
        )
    return str(answer.choices[0].text)


PATHS = [
    "/v1/models", "//v1/models", "/v1//models", "/v1/models/", "/V1/MODELS", "/v1%2Fmodels", "/%76%31/models",
    "/health/../v1/models", "/health/", "/health/ready/", "/health%2Flive", "//health", "/HEALTH", "/health;x",
    "/metrics", "/metrics/", "//metrics", "/docs", "/openapi.json", "/version", "/page", "//page/app.js", "/nothing",
    "/v1/chat/completions", "/v1/engine/steps",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
def test_nothing_but_health_is_answered_without_a_key(server: Server, path: str, method: str) -> None:
    with httpx.Client() as http:
        url = httpx.URL(server.url).copy_with(raw_path=path.encode())  # as it is, without tidying up
        answer = http.request(method, url)
    # One that is decoded to the path of a probe is that path.
    assert answer.status_code == (401 if path != "/health%2Flive" else 405 if method in ("POST", "OPTIONS") else 200)


def test_health_needs_no_key(server: Server) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/health/deep"):
        assert server.get(path).status_code == 200


def test_only_who_may_operate_watches_the_batch(server: Server) -> None:
    path = f"{server.url}/v1/engine/steps"
    assert web.get(path, headers={"x-api-key": ALICE}).status_code == 403
    with web.stream("GET", path, headers={"x-api-key": OPERATOR}) as watched:
        reports = (json.loads(line[6:]) for line in watched.iter_lines() if line.startswith("data: "))
        assert next(reports)["rows"] == []
        body = {"prompt": "a secret prompt", "max_tokens": 5000, "stream": True}
        headers = {"x-api-key": ALICE, "X-Request-ID": "a-secret-id"}
        with web.stream("POST", f"{server.url}/v1/completions", json=body, headers=headers) as running:
            report = next(report for report in reports if report["rows"])
            running.close()
        assert [tenant[:2] for tenant in report["tenants"]] == [["alice", 1]]
        assert "secret" not in json.dumps(report)


def test_the_page_needs_no_key(server: Server) -> None:
    page = server.get("/")
    assert "text/html" in page.headers["content-type"]
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(addresses) > 3
    for address in addresses:
        assert server.get(f"/{address}").status_code == 200


@pytest.mark.parametrize("key", [EVE, "x", "sk-alic", "sk-alicee", ALICE.upper(), digest(ALICE), "k" * 5000])
def test_a_wrong_key_is_refused_in_the_form_of_each_api(server: Server, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}", "x-api-key": key}
    openais = web.post(f"{server.url}/v1/chat/completions", headers=headers)
    assert openais.status_code == 401
    assert openais.json()["error"]["code"] == "invalid_api_key"
    anthropics = web.post(f"{server.url}/v1/messages", headers=headers)
    assert anthropics.status_code == 401
    assert anthropics.json()["error"]["type"] == "authentication_error"


def test_the_clients_own_ways_to_send_a_key_work(server: Server) -> None:
    assert complete(server, ALICE)
    with pytest.raises(openai.AuthenticationError):
        complete(server, EVE)
    for header in ("x-api-key", "api-key"):
        assert web.get(f"{server.url}/v1/models", headers={header: ALICE}).status_code == 200
    assert web.get(f"{server.url}/v1/models", headers={"Authorization": f"bearer {ALICE}"}).status_code == 200


def test_rates_are_kept_and_metrics_say_so(server: Server) -> None:
    for _ in range(3):
        complete(server, BOB)
    with pytest.raises(openai.RateLimitError) as refusal:
        complete(server, BOB)
    assert refusal.value.code == "rate_limit_exceeded"
    assert 1 <= int(refusal.value.response.headers["retry-after"]) <= 20  # three a minute
    complete(server, "sk-few", max_tokens=60)
    with pytest.raises(openai.RateLimitError) as refusal:
        complete(server, "sk-few")
    assert int(refusal.value.response.headers["retry-after"]) > 60  # it has used more than two minutes' worth
    assert complete(server, ALICE)  # nobody else feels it
    text = web.get(f"{server.url}/metrics", headers={"x-api-key": ALICE}).text
    assert 'paceline_tenant_requests_total{tenant="bob"} 3.0' in text
    assert 'paceline_tenant_tokens_total{kind="generation",tenant="few"} 60.0' in text
    assert 'paceline_requests_rejected_total{reason="rate_limited"} 2.0' in text
    assert 'paceline_requests_rejected_total{reason="unauthorized"}' in text
    assert f'paceline_info{{model="SmolLM2-135M-Instruct",version="{__version__}"}} 1.0' in text


def test_blocks_of_prompts_are_not_shared_between_tenants(server: Server, keys_file: Path) -> None:
    def cached(key: str) -> int:
        with client(server, key) as own:
            answer = own.chat.completions.create(
                model="SmolLM2-135M-Instruct", messages=[{"role": "user", "content": "a secret " * 100}], max_tokens=1
            )
        assert answer.usage
        assert answer.usage.prompt_tokens_details
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert cached(ALICE) == 0
    assert cached(ALICE) > 100
    write_keys(keys_file.parent, {**TENANTS, "carol": {"keys": [digest("sk-carol")]}})
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("the API keys were read again")
    assert cached("sk-carol") == 0


def test_keys_are_read_again_unless_the_file_is_broken(server: Server, keys_file: Path) -> None:
    write_keys(keys_file.parent, {**TENANTS, "alice": {"keys": [digest("sk-new")]}})
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("the API keys were read again")
    assert complete(server, "sk-new")
    with pytest.raises(openai.AuthenticationError):
        complete(server, ALICE)
    write_keys(keys_file.parent, {**TENANTS, "alice": {"weight": "heavy"}})
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("weight.*the keys stay as they were")
    assert complete(server, "sk-new")
    write_keys(keys_file.parent, TENANTS)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("the API keys were read again")
    assert complete(server, ALICE)


def test_keys_are_not_in_the_log(server: Server) -> None:
    complete(server, ALICE)
    assert "tenant=alice" in server.wait_for(r"POST /v1/completions 200.*tenant").string
    assert not re.search("sk-|" + digest(ALICE), "".join(server.log))


def test_a_request_ends_when_its_time_is_over(server: Server) -> None:
    headers = {"X-Request-Timeout": "0.05"}
    with pytest.raises(openai.APIStatusError) as late:
        complete(server, ALICE, max_tokens=8000, extra_headers=headers)
    assert late.value.status_code == 504
    assert late.value.type == "timeout"
    stream = web.post(
        f"{server.url}/v1/completions",
        headers={**headers, "x-api-key": ALICE},
        json={"prompt": "Hi", "max_tokens": 8000, "stream": True},
    )
    *_, error, done, end = stream.text.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "request_timeout"
    assert (done, end) == ("data: [DONE]", "")
    for bad in ("0", "0.0", "-1", "nan", "inf", "soon", "1_0", "1e400", "9" * 400):
        with pytest.raises(openai.BadRequestError) as refusal:
            complete(server, ALICE, extra_headers={"X-Request-Timeout": bad})
        assert refusal.value.param == "X-Request-Timeout"
    text = web.get(f"{server.url}/metrics", headers={"x-api-key": ALICE}).text
    assert 'paceline_requests_rejected_total{reason="deadline"} 2.0' in text
    assert "paceline_num_requests_running 0.0" in text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("tenants: []", "tenants"),
        ("{", "not YAML or JSON"),
        ("tenants: !!float ''", "not YAML or JSON"),
        ("tenants: 2001-99-99", "not YAML or JSON"),
        ("[" * 10_000, "not YAML or JSON"),
        ("tenants: [{name: a, keys: [sk-plain]}]", "SHA-256"),
        ("tenants: [{name: a, colour: red}]", "colour"),
        ("tenants: [{name: a}, {name: a}]", "same name"),
    ],
)
def test_a_broken_file_keeps_the_server_from_starting(tmp_path: Path, content: str, problem: str) -> None:
    """`paceline serve` reads the keys first. The next test shows with a real process what a user sees."""
    path = tmp_path / "keys.yaml"
    path.write_text(content)
    with pytest.raises(StartupError, match=re.escape(problem)) as raised:
        read_tenants(str(path))
    assert "sk-plain" not in str(raised.value)


def test_keys_may_be_in_the_environment_instead_of_a_file() -> None:
    content = api_keys({"alice": {"keys": [digest(ALICE)], "requests_per_minute": 1}})
    with running_server("--worker", "echo", PACELINE_API_KEYS=content) as server:
        assert complete(server, ALICE)
        for key, error in ((BOB, openai.AuthenticationError), (ALICE, openai.RateLimitError)):
            with pytest.raises(error):
                complete(server, key)
    broken = content.replace(digest(ALICE), ALICE)
    code, _, log = run("-m", "app.cli", "serve", "--port", "0", "--worker", "echo", PACELINE_API_KEYS=broken)
    assert code == 2
    assert "api_keys: the value: keys are SHA-256 digests" in log
    assert ALICE not in log


def test_the_command_line_makes_keys_and_their_digests() -> None:
    code, output, _ = run("-m", "app.cli", "hash-key")
    key, said = re.findall(r"(?:key|digest)\s+(\S+)", output)
    assert (code, said) == (0, digest(key))
    code, output, _ = run("-m", "app.cli", "hash-key", "--stdin", given=f"{ALICE}\n")
    assert (code, output.split()) == (0, ["digest", digest(ALICE)])
