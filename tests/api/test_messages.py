"""/v1/messages through Anthropic's own client, over a real socket."""

import itertools
import json
from typing import Any

import anthropic
import pytest

from app.api.messages import translate as translation
from app.api.messages.schema import MessagesRequest
from app.core.request import FinishReason
from app.core.wire import GenerateCommand, RequestOutput
from app.errors import EngineUnavailableError, QueueFullError
from tests.api.conftest import IM_END, MODEL, Server
from tests.api.fake_engine import say
from tests.api.test_responses import ADD, TURN, end, thinks, turns  # noqa: F401 - thinks is a fixture

HI: Any = [{"role": "user", "content": "Hi"}]
TOOLS: Any = [{"name": name, "input_schema": {"type": "object"}} for name in ("add", "sub")]


@pytest.fixture
def client(server: Server):
    with anthropic.Anthropic(base_url=server.url, api_key="-", max_retries=0) as client:
        yield client


def test_a_message(client: anthropic.Anthropic, server: Server) -> None:
    server.engine.script = say([*b"Hello", IM_END], reason=FinishReason.STOP, cached=16)
    answer = client.messages.create(
        model=MODEL,
        max_tokens=9,
        messages=HI,
        system=[{"type": "text", "text": "Be brief", "cache_control": {"type": "ephemeral"}}],
        metadata={"user_id": "me"},
        extra_body={"temperature": 0.5, "top_k": 3, "top_p": 0.25},
    )
    (block,) = answer.content
    assert (block.type, block.text, answer.stop_reason, answer.stop_sequence) == ("text", "Hello", "end_turn", None)
    assert (answer.role, answer.type, answer.model) == ("assistant", "message", MODEL)
    sent = server.engine.last_command()
    assert turns(sent.prompt_token_ids) == [("system", "Be brief"), ("user", "Hi"), ("assistant", "")]
    assert (sent.sampling.temperature, sent.sampling.top_k, sent.sampling.top_p) == (0.5, 3, 0.25)
    assert (answer.usage.cache_read_input_tokens, answer.usage.output_tokens) == (16, 6)
    assert answer.usage.input_tokens == len(sent.prompt_token_ids) - 16  # cached ones are counted apart


@pytest.mark.parametrize(
    ("options", "reason", "sequence", "text"),
    [
        ({"max_tokens": 2}, "max_tokens", None, "He"),
        ({"max_tokens": 99, "stop_sequences": ["lo", "x"]}, "stop_sequence", "lo", "Hel"),
        ({"max_tokens": 5000}, "end_turn", None, "Hello"),
    ],
)
def test_why_a_message_ends(server: Server, client: Any, options: Any, reason: str, sequence: str, text: str) -> None:
    server.engine.script = say("Hello") if reason == "max_tokens" else end("Hello")
    whole = client.messages.create(model=MODEL, messages=HI, **options)
    with client.messages.stream(model=MODEL, messages=HI, **options) as stream:
        streamed = stream.get_final_message()
    for answer in (whole, streamed):
        assert (answer.stop_reason, answer.stop_sequence, answer.content[0].text) == (reason, sequence, text)
    assert whole.usage == streamed.usage


def test_a_message_may_end_at_the_end_of_the_context(client: anthropic.Anthropic, server: Server) -> None:
    server.engine.script = say("x" * 500)
    answer = client.messages.create(model=MODEL, max_tokens=5000, messages=HI)
    assert answer.stop_reason == "model_context_window_exceeded"
    assert answer.usage.input_tokens + answer.usage.output_tokens == 256


@pytest.mark.usefixtures("thinks")
def test_every_event_of_a_stream(client: anthropic.Anthropic, server: Server) -> None:
    server.engine.script = end(TURN)
    events = list(client.messages.create(model=MODEL, max_tokens=999, messages=HI, tools=TOOLS, stream=True))
    block = ("content_block_start", "content_block_delta", "content_block_stop")
    kinds = [kind for kind, _ in itertools.groupby(event.type for event in events)]
    assert kinds == ["message_start", *block * 4, "message_delta", "message_stop"]
    started = [event for event in events if event.type == "content_block_start"]
    assert [(e.index, e.content_block.type) for e in started] == [
        (0, "thinking"),
        (1, "text"),
        (2, "tool_use"),
        (3, "tool_use"),
    ]
    deltas = [event.delta.type for event in events if event.type == "content_block_delta"]
    assert [kind for kind, _ in itertools.groupby(deltas)] == ["thinking_delta", "text_delta", "input_json_delta"]


@pytest.mark.usefixtures("thinks")
def test_thinking_text_and_calls_and_their_results(client: anthropic.Anthropic, server: Server) -> None:
    server.engine.script = end(TURN)
    whole = client.messages.create(model=MODEL, max_tokens=999, messages=HI, tools=TOOLS)
    with client.messages.stream(model=MODEL, max_tokens=999, messages=HI, tools=TOOLS) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert text == "Yo"
    for answer in (whole, streamed):
        thinking, said, add, sub = answer.content
        assert (thinking.thinking, said.text, answer.stop_reason) == ("Hm", "Yo", "tool_use")
        assert [(call.name, call.input) for call in (add, sub)] == [("add", {"a": 1}), ("sub", {})]
        assert add.id != sub.id
    results: Any = [{"type": "tool_result", "tool_use_id": call.id, "content": "2"} for call in whole.content[2:]]
    history: Any = [*HI, {"role": "assistant", "content": whole.content}, {"role": "user", "content": results}]
    client.messages.create(model=MODEL, max_tokens=9, messages=history, tools=TOOLS)
    said_then = turns(server.engine.last_command().prompt_token_ids)[1:]  # without the descriptions of tools
    assert [role for role, _ in said_then] == ["user", "assistant", "user", "user", "assistant"]
    assert said_then[1][1].count("<tool_call>") == 2
    assert all("<tool_response>" in result for _, result in said_then[2:4])


@pytest.mark.usefixtures("thinks")
def test_tool_choice_allows_one_tool_a_named_tool_or_none(client: anthropic.Anthropic, server: Server) -> None:
    server.engine.script = end(TURN)
    options: Any = {"model": MODEL, "max_tokens": 999, "messages": HI, "tools": TOOLS}
    one = client.messages.create(tool_choice={"type": "auto", "disable_parallel_tool_use": True}, **options)
    assert [block.type for block in one.content] == ["thinking", "text", "tool_use"]
    server.engine.script = end(ADD)
    for choice in ({"type": "any"}, {"type": "tool", "name": "add"}):
        (call,) = client.messages.create(tool_choice=choice, **options).content
        assert (call.name, call.input) == ("add", {"a": 1})
        assert server.engine.last_command().sampling.grammar
    client.messages.create(tool_choice={"type": "none"}, **options)
    assert turns(server.engine.last_command().prompt_token_ids)[0] == ("user", "Hi")  # told of no tools


@pytest.mark.usefixtures("thinks")
@pytest.mark.parametrize("options", [{}, {"thread": False}])
def test_the_clients_own_tool_loop(client: anthropic.Anthropic, server: Server, options: Any) -> None:
    @anthropic.beta_tool
    def add(a: int) -> str:
        """Add one."""
        return str(a + 1)

    def script(command: GenerateCommand) -> list[RequestOutput]:
        *_, (_, last), _ = turns(command.prompt_token_ids)
        return end("It is 2" if last == "<tool_response>\n2\n</tool_response>" else ADD)(command)

    server.engine.script = script
    runner = client.beta.messages.tool_runner(model=MODEL, max_tokens=999, messages=HI, tools=[add], **options)
    (block,) = runner.until_done().content
    assert block.text == "It is 2"
    with pytest.raises(anthropic.BadRequestError, match="thread is not supported"):
        client.beta.messages.create(model=MODEL, max_tokens=9, messages=HI, thread={"type": "create"})


@pytest.mark.usefixtures("thinks")
def test_a_call_that_is_cut_short_is_completed_as_json(client: anthropic.Anthropic, server: Server) -> None:
    server.engine.script = say('<tool_call>\n{"name": "add", "arguments": {"a": [1, "on')
    answer = client.messages.create(model=MODEL, max_tokens=999, messages=HI, tools=TOOLS)
    (block,) = answer.content
    assert (block.name, block.input) == ("add", {"a": [1, "on"]})


def test_the_wire_holds_what_raw_readers_expect(server: Server) -> None:
    answer = server.post("/v1/messages", {"messages": HI, "max_tokens": 1, "stream": True})
    events = [part.split("\n") for part in answer.text.split("\n\n") if part and not part.startswith(":")]
    assert [name for name, _ in events] == [f"event: {json.loads(data[6:])['type']}" for _, data in events]
    assert events[1][0] == "event: ping"
    assert events[-1][0] == "event: message_stop"


async def test_the_async_client(server: Server) -> None:
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="-", max_retries=0) as client:
        answer = await client.messages.create(model=MODEL, max_tokens=9, messages=HI)
        async with client.messages.stream(model=MODEL, max_tokens=9, messages=HI) as stream:
            assert (await stream.get_final_message()).content[0].text == answer.content[0].text == "Hello"


def test_the_client_can_send_back_the_message_that_it_got(client: anthropic.Anthropic, server: Server) -> None:
    answer = client.messages.create(model=MODEL, max_tokens=9, messages=HI)
    more: Any = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    history = [*HI, {"role": "assistant", "content": answer.content}, more]
    client.messages.create(model=MODEL, max_tokens=9, messages=history)
    said = [("user", "Hi"), ("assistant", "Hello"), ("user", "a\nb"), ("assistant", "")]
    assert turns(server.engine.last_command().prompt_token_ids) == said


def test_a_last_turn_of_the_assistant_is_continued(client: anthropic.Anthropic, server: Server) -> None:
    client.messages.create(model=MODEL, max_tokens=9, messages=[*HI, {"role": "assistant", "content": "We"}])
    assert turns(server.engine.last_command().prompt_token_ids) == [("user", "Hi"), ("assistant", "We")]


def test_counted_tokens_are_those_of_the_usage(client: anthropic.Anthropic) -> None:
    prompt: Any = {"model": MODEL, "messages": HI, "system": "Be brief"}
    answer = client.messages.create(max_tokens=1, **prompt)
    assert client.messages.count_tokens(**prompt).input_tokens == answer.usage.input_tokens


def test_output_of_a_schema(client: anthropic.Anthropic, server: Server) -> None:
    format_: Any = {"type": "json_schema", "schema": {"type": "object"}}
    client.messages.create(model=MODEL, max_tokens=9, messages=HI, output_config={"format": format_})
    assert server.engine.last_command().sampling.grammar


def test_tools_and_their_results_become_a_chats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation, "validate", lambda _, fields, _ignored: fields)
    result = {"type": "tool_result", "tool_use_id": "t1"}
    body = MessagesRequest.model_validate(
        {
            "max_tokens": 9,
            "messages": [
                {"role": "user", "content": "1+1?"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm", "signature": "s"},
                        {"type": "text", "text": "Wait"},
                        {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": "é"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {**result, "content": "2"},
                        {**result, "content": [{"type": "text", "text": "no"}], "is_error": True},
                        {"type": "text", "text": "So?"},
                    ],
                },
            ],
            "tools": [{"name": "add", "description": "d", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "thinking": {"type": "disabled"},
        }
    )
    chat: Any = translation.to_chat(body)
    call = {"id": "t1", "type": "function", "function": {"name": "add", "arguments": '{"a": "é"}'}}
    assert chat["messages"] == [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "Wait", "reasoning_content": "Hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "2"},
        {"role": "tool", "tool_call_id": "t1", "content": "Error: no"},
        {"role": "user", "content": "So?"},
    ]
    function = {"name": "add", "description": "d", "parameters": {"type": "object"}}
    assert chat["tools"] == [{"type": "function", "function": function}]
    assert (chat["tool_choice"], chat["parallel_tool_calls"]) == ("required", False)
    assert chat["chat_template_kwargs"] == {"enable_thinking": False}


CACHE = {"type": "ephemeral", "ttl": "1h", "scope": "global"}
AGENT: dict[str, Any] = {
    # as Claude Code sends it
    "model": MODEL,
    "max_tokens": 32000,
    "metadata": {"user_id": '{"device_id":"a","account_uuid":"","session_id":"b"}'},
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=1f3a;"},
        {"type": "text", "text": "Be brief", "cache_control": CACHE},
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": CACHE}]},
        {
            "role": "assistant",
            "content": [
                {"type": "redacted_thinking", "data": "EmwKAhgB"},
                {"type": "thinking", "thinking": "Hm", "signature": "EqQB"},
                {"type": "text", "text": "Wait", "citations": None},
                {"type": "tool_use", "id": "t1", "name": "a b", "input": {}, "caller": {"type": "direct"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "tool_reference", "tool_name": "add"}, {"type": "text", "text": "no"}],
                    "is_error": True,
                    "cache_control": CACHE,
                }
            ],
        },
    ],
    "tools": [
        {
            "name": "mcp__" + "x" * 123,
            "input_schema": {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object"},
            "defer_loading": True,
            "eager_input_streaming": True,
            "input_examples": [{"a": 1}],
            "cache_control": CACHE,
        },
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
    ],
    "thinking": {"type": "adaptive", "display": "summarized"},
    "output_config": {"effort": "high", "task_budget": {"type": "tokens", "total": 20000}},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "stop_sequences": [str(index) for index in range(9)],
    "service_tier": "standard_only",
    "speed": "fast",
}


@pytest.mark.usefixtures("thinks")
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_of_a_coding_agent(server: Server, stream: bool) -> None:
    headers = {
        "anthropic-beta": "claude-code-20250219,context-management-2025-06-27",
        "anthropic-version": "2023-06-01",
    }
    answer = server.post("/v1/messages?beta=true", {**AGENT, "stream": stream}, headers=headers)
    assert (answer.status_code, answer.headers.get("X-Ignored-Fields")) == (200, None)
    assert answer.text.count('"context_management":{"applied_edits":[]}') == 1 + stream
    prompt = server.engine.last_command().prompt_token_ids
    (_, told), *said = turns(prompt)
    assert "Be brief" in told
    assert "billing" not in told  # it differs in each request, and would keep prompts from being cached
    assert 'Example of the input: {\\"a\\": 1}' in told
    assert "web_search" not in told
    assert [role for role, _ in said] == ["user", "assistant", "user", "assistant"]
    assert "Error: add\nno" in said[2][1]
    fields = {name: AGENT[name] for name in AGENT.keys() - {"max_tokens", "stop_sequences", "service_tier", "speed"}}
    counted = server.post("/v1/messages/count_tokens?beta=true", fields, headers=headers)
    assert counted.json() == {"input_tokens": len(prompt)}


@pytest.mark.usefixtures("thinks")
def test_tools_that_the_conversation_adds_and_removes(server: Server) -> None:
    def change(kind: str, tool: dict[str, Any]) -> Any:
        return {"role": "system", "content": [{"type": f"tool_{kind}", "tool": tool, "cache_control": CACHE}]}

    def named(name: str) -> dict[str, Any]:
        return {"type": "tool_reference", "name": name}

    new = {"type": "tool_definition", "definition": {"name": "new", "input_schema": {"type": "object"}}}
    for changes, names in (
        ([change("addition", named("add"))], {"add", "sub"}),
        ([change("removal", named("add"))], {"sub"}),
        ([change("removal", named("add")), change("addition", named("add"))], {"add", "sub"}),
        ([change("addition", new), change("removal", named("sub"))], {"add", "new"}),
    ):
        body = {"max_tokens": 9, "messages": [*HI, *changes], "tools": TOOLS}
        assert server.post("/v1/messages", body).status_code == 200
        (_, told), *said = turns(server.engine.last_command().prompt_token_ids)
        assert {name for name in ("add", "sub", "new") if f'"{name}"' in told} == names
        assert said == [("user", "Hi"), ("assistant", "")]


BASE = {"max_tokens": 9, "messages": HI}
IMAGE = {"type": "image", "source": {"type": "url", "url": "x"}}
MCP_TOOL = {"type": "tool_addition", "tool": {"type": "mcp_toolset_reference", "server_name": "x"}}
HOSTED = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
WRONG = [
    # body, what the message names
    ({"messages": HI}, "max_tokens"),
    ({"max_tokens": 9}, "messages"),
    ({**BASE, "messages": []}, "messages"),
    ({**BASE, "messages": [{"role": "user", "content": "x" * 256}]}, "messages"),
    ({**BASE, "messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({**BASE, "messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]: content of type 'image'"),
    ({**BASE, "messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({**BASE, "messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]}, "thinking"),
    ({**BASE, "messages": [*HI, {"role": "system", "content": [MCP_TOOL]}]}, "messages[1].content[0].tool[0]"),
    ({**BASE, "max_tokens": 0}, "max_tokens"),
    ({**BASE, "stop_sequences": [""]}, "stop_sequences"),
    ({**BASE, "stop_token_ids": [300]}, "stop_token_ids"),
    ({**BASE, "temperature": -1}, "temperature"),
    ({**BASE, "mcp_servers": [{}]}, "mcp_servers"),
    ({**BASE, "container": "c"}, "container"),
    ({**BASE, "stop_sequences": [str(index) for index in range(33)]}, "stop_sequences"),
    ({**BASE, "thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({**BASE, "thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
    ({**BASE, "thinking": {"type": "adaptive", "budget_tokens": 9}}, "thinking.budget_tokens"),
    ({**BASE, "output_config": {"effort": "huge"}}, "output_config.effort"),
    ({**BASE, "context_management": {"edits": [{"type": "compact_20260112"}]}}, "context_management.edits[0].type"),
    ({**BASE, "tools": [HOSTED], "tool_choice": {"type": "tool", "name": "web_search"}}, "tool_choice"),
    ({**BASE, "output_config": {"format": {"type": "json_schema", "schema": {"type": 5}}}}, "output_config.format"),
    ({**BASE, "tools": [{"type": "bash_20250124", "name": "bash"}]}, "bash_20250124"),
    ({**BASE, "tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({**BASE, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({**BASE, "tools": TOOLS, "tool_choice": {"type": "any"}, "stop_sequences": ["a"]}, "stop_sequences and a tool"),
]


@pytest.mark.parametrize(("body", "name"), WRONG, ids=[f"{name}-{i}" for i, (_, name) in enumerate(WRONG)])
def test_a_wrong_field_is_named(server: Server, body: dict[str, Any], name: str) -> None:
    answer = server.post("/v1/messages", body, headers={"X-Request-ID": "job-7"})
    assert answer.status_code == 400
    error = answer.json()
    assert name in error["error"].pop("message")
    assert error == {"type": "error", "error": {"type": "invalid_request_error"}, "request_id": "job-7"}
    assert server.engine.commands.empty()


def test_errors_reach_the_client_as_its_own(client: anthropic.Anthropic, server: Server) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="other", max_tokens=9, messages=HI)
    with pytest.raises(anthropic.RequestTooLargeError):
        client.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "x" * 100_001}])
    server.engine.refusal = QueueFullError("full")
    with pytest.raises(anthropic.RateLimitError):
        client.messages.create(model=MODEL, max_tokens=9, messages=HI)
    server.engine.refusal = EngineUnavailableError("gone")
    with pytest.raises(anthropic.InternalServerError) as caught:
        client.messages.create(model=MODEL, max_tokens=9, messages=HI)
    assert caught.value.type == "overloaded_error"


def test_a_failed_message(client: anthropic.Anthropic, server: Server) -> None:
    server.engine.script = say("He", reason=FinishReason.ERROR, error="the model failed")
    with (
        pytest.raises(anthropic.APIStatusError) as caught,
        client.messages.stream(model=MODEL, max_tokens=9, messages=HI) as stream,
    ):
        stream.until_done()
    assert (caught.value.type, caught.value.api_message) == ("api_error", "the model failed")
    with pytest.raises(anthropic.InternalServerError):
        client.messages.create(model=MODEL, max_tokens=9, messages=HI)
