"""Chats of all three APIs, where the chat template does not read them as they come."""

import json
from typing import Any

import msgspec
import pytest

from app.core.request import FinishReason
from app.text.chat_template import ChatTemplate
from app.text.message_format import MessageFormat
from tests.api.conftest import IM_END, Server
from tests.api.fake_engine import READY, say

NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<t>' + m['role'] + '\\n' + m['content'] }}{% endfor %}<t>model"
)
EITHER = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endif %}{% endfor %}"
)
ONLY_TEXT = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "get_weather", "description": "Tells the weather.", "parameters": SCHEMA}
ASKED = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "Rain?"}],
        "tools": [{"type": "function", "function": FUNCTION}],
    },
    "/v1/responses": {"input": "Rain?", "tools": [{"type": "function", **FUNCTION}]},
    "/v1/messages": {
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Rain?"}],
        "tools": [{"name": "get_weather", "description": "Tells the weather.", "input_schema": SCHEMA}],
    },
}


class Model:
    """A server with another chat template."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self._server, self._patch = server, monkeypatch
        server.engine.ready = msgspec.structs.replace(READY, max_model_len=4096)

    def use(self, template: str) -> None:
        """Take this template from now on."""
        tokenizer = self._server.service.tokenizer
        chat_template = ChatTemplate(template, tokenizer.special_tokens, tokenizer.control_tokens)
        for name, part in {
            "chat_template": chat_template,
            "message_format": MessageFormat.choose("auto", "auto", chat_template),
        }.items():
            self._patch.setitem(vars(self._server.service), name, part)

    def prompt(self, template: str, path: str, body: dict[str, Any]) -> str:
        """The prompt that a request becomes with a template."""
        self.use(template)
        answer = self._server.post(path, body)
        assert answer.status_code == 200, answer.text
        return bytes(self._server.engine.last_command().prompt_token_ids).decode()


@pytest.fixture
def model(server: Server, monkeypatch: pytest.MonkeyPatch) -> Model:
    return Model(server, monkeypatch)


@pytest.mark.parametrize("path", ASKED)
def test_tools_where_there_is_no_system_role(path: str, model: Model) -> None:
    prompt = model.prompt(NO_SYSTEM, path, ASKED[path])
    assert prompt.startswith("<t>user\n")
    assert prompt.endswith("\n\nRain?<t>model")
    assert '"get_weather"' in prompt


@pytest.mark.parametrize("path", ASKED)
def test_a_system_message_where_there_is_no_system_role(path: str, model: Model) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rain?"}]
    system: dict[str, Any] = {
        "/v1/chat/completions": {"messages": chat},
        "/v1/responses": {"instructions": "Be brief."},
        "/v1/messages": {"system": "Be brief."},
    }[path]
    prompt = model.prompt(NO_SYSTEM, path, ASKED[path] | system)
    assert prompt.startswith("<t>user\nBe brief.\n\nYou can call functions.")
    assert prompt.endswith("\n\nRain?<t>model")
    prompt = model.prompt(NO_SYSTEM, path, ASKED[path] | system | {"tools": []})
    assert prompt == "<t>user\nBe brief.\n\nRain?<t>model"


@pytest.mark.parametrize(("template", "prompt"), [(EITHER, "OneTwo"), (ONLY_TEXT, "<user>One\nTwo")])
@pytest.mark.parametrize("path", ASKED)
def test_content_in_parts(path: str, template: str, prompt: str, model: Model) -> None:
    kind = "input_text" if path == "/v1/responses" else "text"
    message = {"role": "user", "content": [{"type": kind, "text": text} for text in ("One", "Two")]}
    body = {"input": [message]} if path == "/v1/responses" else {"messages": [message], "max_tokens": 9}
    assert model.prompt(template, path, body) == prompt


@pytest.mark.parametrize("arguments", ['{"city": "Par', '{"city"', "Par", '{"a":' + "[" * 900 + "]" * 900 + "}"])
def test_calls_that_were_cut_come_back(arguments: str, model: Model) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    chat = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "error"},
    ]
    prompt = model.prompt(ONLY_TEXT, "/v1/chat/completions", {"messages": chat})
    assert f'{{"name": "get_weather", "arguments": {arguments}}}' in prompt
    assert "error" in prompt
    calls = "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}"
    native = f"{{% for m in messages %}}{calls}{{{{ m.content }}}}{{% endfor %}}"
    prompt = model.prompt(native, "/v1/chat/completions", {"messages": chat})
    assert json.dumps(arguments) in prompt  # no object, so the text that it is


TAGGED = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}{% if tools %}{{ tools | tojson }}"
    "<tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>\n</tool_call>{% endif %}"
)
WRITTEN = "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"


@pytest.mark.parametrize("tool_choice", ["auto", "required"])
def test_calls_in_the_tags_that_the_template_shows(tool_choice: str, model: Model, server: Server) -> None:
    server.engine.script = say([*WRITTEN.encode(), IM_END], reason=FinishReason.STOP)
    body = {**ASKED["/v1/chat/completions"], "tool_choice": tool_choice, "max_tokens": 200}
    model.use(TAGGED)
    choice = server.post("/v1/chat/completions", body).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
    events = [event["choices"][0] for event in server.events("/v1/chat/completions", body)]  # one byte each
    pieces = [call["function"] for event in events for call in event["delta"].get("tool_calls", [])]
    assert "".join(piece["arguments"] for piece in pieces) == '{"city": "Paris"}'
    assert not any(event["delta"].get("content") for event in events)
    assert events[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(("opening", "closing"), [("<think>", "</think>"), ("[THINK]", "[/THINK]")])
@pytest.mark.parametrize("is_continued", [False, True])
def test_reasoning_that_the_prompt_has_opened(
    opening: str, closing: str, is_continued: bool, model: Model, server: Server
) -> None:
    server.engine.script = say([*f" see.{closing}Yes.".encode(), IM_END], reason=FinishReason.STOP)
    source = ONLY_TEXT + "{% if add_generation_prompt %}<assistant>" + opening + "{% endif %}"
    model.use(source)
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": f"What is {opening}?"}]}
    if is_continued:
        chat["messages"].append({"role": "assistant", "content": f"{opening}Let me"})
        chat["continue_final_message"] = True
    message = server.post("/v1/chat/completions", chat).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (" see.", "Yes.")
