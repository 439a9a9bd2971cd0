"""The view of the running batch in a real browser, with a real server and many clients."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, expect

from tests import web
from tests.page.conftest import needs_chromium, serious_violations
from tests.patience import wait_until
from tests.server.process import Server, running_server

pytestmark = needs_chromium

CLIENTS, ROWS = 32, 12


@contextmanager
def load(server: Server) -> Iterator[None]:
    """Clients that each have a request at any time, until the caller is done."""
    ends = threading.Event()

    def ask(index: int) -> None:
        while not ends.is_set():
            # Not streamed: so many streams in this process would leave no time for the browser's driver.
            body = {"prompt": [7] * 64 + [index] * 40, "max_tokens": 2000}
            assert web.post(f"{server.url}/v1/completions", json=body).is_success

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask, index) for index in range(CLIENTS)]
        try:
            yield
        finally:
            ends.set()
        for client in clients:
            client.result()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = ("--max-num-seqs", str(ROWS), "--num-kv-blocks", "5000", "--api-workers", "2")
    with running_server("--worker", "echo", *flags) as running:
        yield running


def number(page: Page, name: str) -> int:
    """A figure at the top of the page."""
    text = page.locator(".figures div", has=page.get_by_text(name, exact=True)).locator("b").inner_text()
    return int(re.sub(r"\D", "", text) or 0)


def painted(page: Page, selector: str) -> int:
    """How many different colours a canvas has."""
    script = """canvas => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size;
    }"""
    return int(page.locator(selector).first.evaluate(script))


def test_it_shows_who_runs_and_who_waits(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/#batch")
    expect(page.get_by_text("The road is empty")).to_be_visible()
    blank = painted(page, ".road-canvas")
    with load(server):
        expect(page.locator(".figures div", has=page.get_by_text("Running", exact=True)).locator("b")).to_have_text(
            str(ROWS)
        )
        expect(page.locator(".queue")).to_contain_text(re.compile(rf"{ROWS} running, \d+ waiting"))
        expect(page.locator(".note", has_text="of 5,000 blocks")).to_contain_text("one in 5 is shown")
        page.get_by_text("Requests as a table").click()
        expect(page.locator(".rows tbody tr")).to_have_count(ROWS)
        assert number(page, "Output") > 0
        wait_until(lambda: painted(page, ".road-canvas") > blank)  # words may come before pictures
        assert serious_violations(page) == []
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.get_by_text("Nobody has requests now")).to_be_visible()
    expect(page.locator(".figures div", has=page.get_by_text("Running", exact=True)).locator("b")).to_have_text("0")


def test_nobody_is_told_when_the_view_is_left(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/#batch")
    expect(page.get_by_text("The road is empty")).to_be_visible()
    with page.expect_event("requestfailed", lambda request: "/v1/engine/steps" in request.url):
        page.get_by_role("link", name="Chat", exact=True).click()
    expect(page.get_by_placeholder("Write a message")).to_be_focused()
