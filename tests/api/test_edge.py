"""What surrounds every request: HEAD, pages of other sites, and Azure's paths, over a real socket."""

import re
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.api.conftest import MODEL, Server, start_server

PAGE = "https://chat.example"
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def open_server(model_folder: Path) -> Iterator[Server]:
    """A server for the pages of one site, and for Azure's clients."""
    yield from start_server(model_folder, cors_origins=PAGE, azure_paths=True, page=False)


def test_a_browser_is_told_where_to_look(open_server: Server) -> None:
    server = open_server
    assert server.get("/page/app.js").status_code == 404
    answer = server.get("/")
    assert answer.status_code == 200
    paths = re.findall(r"/[\w/]+", answer.text.partition("See")[2])
    assert len(paths) == 4
    assert all(server.get(path).status_code == 200 for path in paths)


def test_the_page_on_the_api_loads_nothing_from_elsewhere(server: Server) -> None:
    page = server.get("/docs").text
    addresses = re.findall(r"""(?:src|href)="([^"]+)\"""", page)
    assert len(addresses) == 3
    for address in addresses:
        assert address.startswith("/")
        assert len(server.get(address).content) > 1000


# ---------------------------------------------------------------------- HEAD


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/v1/models", "/metrics", "/version", "/openapi.json"])
def test_head_is_get_without_the_body(server: Server, path: str) -> None:
    head, get = server.client.head(path), server.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers["content-length"] != "0"


def test_head_fails_as_get_does(server: Server) -> None:
    for path, status in (("/v1/nothing", 404), ("/v1/completions", 405)):
        assert (server.client.head(path).status_code, server.get(path).status_code) == (status, status)


def test_head_of_a_stream_does_not_wait_for_its_end(server: Server) -> None:
    headers = {"X-Resumable": "true", "X-Request-ID": "endless"}
    body = {"prompt": "Hi", "stream": True, "max_tokens": 5}
    server.engine.script = []  # nothing ever comes
    with server.client.stream("POST", "/v1/completions", json=body, headers=headers):
        head = server.client.head("/v1/streams/endless")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")


# ---------------------------------------------------------------------- pages of other sites


def preflight(server: Server, origin: str) -> dict[str, str]:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    return dict(server.client.options("/v1/chat/completions", headers=headers).headers)


def test_a_page_of_a_listed_site_may_ask(open_server: Server) -> None:
    allowed = preflight(open_server, PAGE)
    assert allowed["access-control-allow-origin"] == PAGE
    assert "POST" in allowed["access-control-allow-methods"]
    assert "x-stainless-os" in allowed["access-control-allow-headers"]
    for body in ({"messages": MESSAGES}, {"messages": MESSAGES, "stream": True}, {}):
        answer = open_server.post("/v1/chat/completions", body, headers={"Origin": PAGE})
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]


def test_no_other_page_may(open_server: Server, server: Server) -> None:
    assert "access-control-allow-origin" not in preflight(open_server, "https://evil.example")
    assert "access-control-allow-origin" not in preflight(server, PAGE)
    answer = open_server.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


# ---------------------------------------------------------------------- Azure


def test_azures_client_talks_to_a_deployment(open_server: Server) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=open_server.url, api_key="-", api_version="2024-10-21", max_retries=0
    ) as client:
        answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert answer.choices[0].message.content == "Hello"
        assert client.responses.create(model=MODEL, input="Hi").output_text == "Hello"
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="other", messages=MESSAGES)
    assert caught.value.code == "model_not_found"


def test_the_deployment_is_the_model_of_a_body_without_one(open_server: Server) -> None:
    path = "/openai/deployments/{}/completions?api-version=2024-10-21"
    assert open_server.post(path.format(MODEL), {"prompt": "Hi"}).json()["choices"][0]["text"] == "Hello"
    other = open_server.post(path.format("other"), {"prompt": "Hi"})
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")


def test_openais_client_talks_to_the_newer_path(open_server: Server, server: Server) -> None:
    with openai.OpenAI(base_url=f"{open_server.url}/openai/v1", api_key="-", max_retries=0) as client:
        assert client.models.list().data[0].id == MODEL
    assert server.get("/openai/v1/models").status_code == 404
