"""The chat of the page in a real browser, in front of a fake engine that follows a script."""

import base64
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs
from playwright.sync_api import Page, expect

from app.core.request import FinishReason
from app.text.message_format import MessageFormat
from app.text.reasoning import THINK
from tests.api.conftest import Server, start_server
from tests.api.fake_engine import READY, say
from tests.page.conftest import needs_chromium, serious_violations
from tests.patience import PATIENCE
from tests.server.keys import api_keys

pytestmark = needs_chromium

HOSTILE = """# Title

Some **bold** text.

```python
print("<b>")
```

<img src=x onerror="document.title='broken'"><script>document.title='broken'</script>
[bad](javascript:alert(1)) [good](https://example.org/)
"""


@pytest.fixture(scope="module")
def _service(model_folder: Path) -> Iterator[Server]:
    yield from start_server(model_folder)


@pytest.fixture
def server(_service: Server) -> Server:
    _service.engine.reset()
    _service.engine.ready = structs.replace(READY, max_model_len=4096)
    return _service


@pytest.fixture
def chat(page: Page, server: Server) -> Page:
    """The page, ready for a message."""
    page.goto(server.url)
    expect(page.get_by_placeholder("Write a message")).to_be_focused()
    return page


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def last_messages(server: Server) -> str:
    """The text of the latest prompt."""
    return bytes(token for token in server.engine.last_command().prompt_token_ids if token < 256).decode()


def test_an_answer_streams_and_is_shown_as_what_it_is(chat: Page, server: Server) -> None:
    server.engine.script = say(HOSTILE, per_output=3)
    ask(chat, "Hello *you*")
    answer = chat.get_by_label("Answer", exact=True)
    expect(answer.locator(".stats")).to_contain_text("first after")
    expect(answer.locator(".stats")).to_contain_text(f"{len(HOSTILE)} tokens")
    expect(answer.locator("h3")).to_have_text("Title")
    expect(answer.locator("strong")).to_have_text("bold")
    expect(answer.locator("pre")).to_have_text('print("<b>")\n'.rstrip())
    expect(answer).to_contain_text("<img src=x")
    assert answer.locator("img, script").count() == 0
    assert [link.get_attribute("href") for link in answer.locator("a").all()] == ["https://example.org/"]
    assert chat.title() == "Chat · Paceline"
    expect(chat.get_by_role("status")).to_contain_text("complete")
    expect(chat.locator(".context")).to_contain_text("of 4,096 tokens")
    assert "Hello *you*" in last_messages(server)


def test_deep_markdown_is_shown_too(chat: Page, server: Server) -> None:
    texts = ("*a " * 300 + "b*" * 300, "> " * 400 + "c", "[" * 100 + "d" + "](e)" * 100)
    server.engine.script = say("\n\n".join(texts), per_output=40)
    ask(chat, "Hi")
    answer = chat.get_by_label("Answer", exact=True)
    expect(answer.locator(".stats")).to_be_visible()
    for text in ("a a a", "> > c", "[[[d"):
        expect(answer).to_contain_text(text)


def test_stop_aborts_in_the_engine(chat: Page, server: Server) -> None:
    server.engine.script = say("endless", None)  # no end comes
    ask(chat, "Go on")
    expect(chat.get_by_label("Answer", exact=True)).to_contain_text("endless")
    chat.keyboard.press("Escape")
    aborted = server.engine.aborted.get(timeout=PATIENCE)
    assert aborted == server.engine.last_command().request_id
    expect(chat.get_by_label("Answer", exact=True).locator(".stats")).to_contain_text("stopped")
    expect(chat.get_by_label("Send")).to_be_visible()


def test_turns_branch_and_the_way_back_is_there(chat: Page, server: Server) -> None:
    server.engine.script = say("First answer")
    ask(chat, "First question")
    answer = chat.get_by_label("Answer", exact=True)
    expect(answer.locator(".stats")).to_be_visible()
    server.engine.script = say("Second answer")
    answer.get_by_label("Answer again").click()
    expect(answer).to_contain_text("Second answer")
    expect(answer.locator(".branches")).to_have_text("2/2")
    expect(answer).to_contain_text("Second answer")
    chat.keyboard.press("ArrowUp")  # from the empty composer: the last message
    edited = chat.get_by_label("Edit your message")
    expect(edited).to_have_value("First question")
    server.engine.script = say("Third answer")
    edited.fill("Other question")
    edited.press("Enter")
    expect(answer).to_contain_text("Third answer")
    assert "First question" not in last_messages(server)
    chat.get_by_label("You", exact=True).get_by_label("Earlier branch").click()
    expect(answer).to_contain_text("Second answer")
    answer.get_by_label("Earlier branch").click()
    expect(answer).to_contain_text("First answer")
    ask(chat, "And now?")
    expect(chat.get_by_label("Answer", exact=True)).to_have_count(2)
    sent = last_messages(server)
    assert "First answer" in sent
    assert "Second answer" not in sent

    with chat.expect_download() as download:
        chat.keyboard.press("Alt+o")
        chat.get_by_text("Export JSON").click()
    kept = json.loads(Path(download.value.path()).read_text())
    assert len(kept["turns"]) == 7
    with chat.expect_download() as download:
        chat.get_by_text("Export markdown").click()
    shown = Path(download.value.path()).read_text()
    assert re.findall(r"## (\w+)\n\n(.+)", shown)[:2] == [("You", "First question"), ("Assistant", "First answer")]


def test_conversations_are_kept_in_the_browser_alone(chat: Page) -> None:
    ask(chat, "Remember this")
    expect(chat.get_by_label("Answer", exact=True).locator(".stats")).to_be_visible()
    chat.keyboard.press("Alt+n")
    expect(chat.get_by_label("Answer", exact=True)).to_have_count(0)
    chat.reload()
    chat.get_by_role("button", name="Remember this", exact=True).click()
    expect(chat.get_by_label("Answer", exact=True)).to_contain_text("Hello")
    chat.get_by_label("Delete “Remember this”").click()
    expect(chat.get_by_text("Remember this")).to_have_count(0)


def test_options_are_sent(chat: Page, server: Server) -> None:
    chat.keyboard.press("Alt+o")
    chat.get_by_label("System prompt").fill("Be brief.")
    chat.get_by_label("Temperature").fill("0.25")
    chat.get_by_label("Seed").fill("7")
    chat.get_by_label("Max tokens").fill("3")
    ask(chat, "Hi")
    expect(chat.get_by_label("Answer", exact=True).locator(".stats")).to_contain_text("cut at its limit")
    command = server.engine.last_command()
    assert (command.sampling.temperature, command.sampling.seed, command.sampling.max_tokens) == (0.25, 7, 3)
    assert "Be brief." in bytes(token for token in command.prompt_token_ids if token < 256).decode()


def test_reasoning_is_folded_and_calls_are_shown(chat: Page, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    format_ = MessageFormat.choose("hermes", "none", server.service.chat_template)
    monkeypatch.setitem(vars(server.service), "message_format", dataclasses.replace(format_, reasoning=THINK))
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
    server.engine.script = say(f"<think>Let me see.</think>{call}", FinishReason.STOP)
    chat.keyboard.press("Alt+o")
    tool = {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}},
    }
    chat.get_by_label("Tools").fill(json.dumps([tool]))
    ask(chat, "How is the weather?")
    answer = chat.get_by_label("Answer", exact=True)
    expect(answer.locator(".call figcaption")).to_have_text("weather")
    expect(answer.locator(".call pre")).to_have_text('{\n  "city": "Bern"\n}')
    expect(answer.get_by_text("Let me see.")).not_to_be_visible()
    answer.get_by_text("Thought").click()
    expect(answer.get_by_text("Let me see.")).to_be_visible()
    server.engine.script = say("It is sunny.")
    answer.get_by_label("Result of weather").fill("sunny, 20 degrees")
    answer.get_by_text("Give result").click()
    expect(chat.get_by_label("Answer", exact=True).last).to_contain_text("It is sunny.")
    assert "sunny, 20 degrees" in last_messages(server)


PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_images_go_to_models_that_take_them(chat: Page, server: Server) -> None:
    assert chat.get_by_label("Attach images").count() == 0
    server.engine.ready = structs.replace(READY, max_model_len=4096, reads_images=True)
    chat.reload()
    with chat.expect_file_chooser() as chooser:
        chat.get_by_label("Attach images").click()
    chooser.value.set_files({"name": "dot.png", "mimeType": "image/png", "buffer": PIXEL})
    expect(chat.get_by_alt_text("image 1")).to_be_visible()
    with chat.expect_request("**/v1/chat/completions") as asked:
        ask(chat, "What is it?")
    image, text = asked.value.post_data_json["messages"][0]["content"]
    assert image["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(PIXEL).decode()
    assert text == {"type": "text", "text": "What is it?"}
    expect(chat.get_by_label("You", exact=True).get_by_alt_text("image 1")).to_be_visible()


def test_errors_are_told(page: Page, model_folder: Path) -> None:
    for server in start_server(model_folder, api_keys=api_keys({"alice": {}})):
        page.goto(server.url)
        asked = page.get_by_role("dialog")
        asked.get_by_label("API key").fill("alice")
        asked.get_by_text("Use key").click()
        expect(page.get_by_placeholder("Write a message")).to_be_visible()
        server.engine.script = say("Hal", FinishReason.ERROR, error="broken")
        ask(page, "Hi")
        expect(page.get_by_role("alert")).to_contain_text("broken")
        expect(page.get_by_label("Answer", exact=True)).to_contain_text("Hal")
        page.get_by_text("Batch").click()
        expect(page.get_by_role("alert")).to_contain_text("may_operate")
        page.reload()  # the key is kept in the tab
        expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everybody_can_use_it(chat: Page, server: Server, theme: str, width: int) -> None:
    chat.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    chat.set_viewport_size({"width": width, "height": 800})
    assert serious_violations(chat) == []
    server.engine.script = say(HOSTILE + "\n| a | b |\n| - | - |\n| 1 | 2 |\n\n- [x] done\n")
    ask(chat, "Hi")
    answer = chat.get_by_label("Answer", exact=True)
    expect(answer.locator(".stats")).to_be_visible()
    answer.get_by_label("Answer again").click()
    expect(answer.locator(".branches")).to_have_text("2/2")
    chat.keyboard.press("Alt+o")
    assert serious_violations(chat) == []
    assert chat.evaluate("document.documentElement.scrollWidth") <= width
