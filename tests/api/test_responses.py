"""/v1/responses through OpenAI's client, over a real socket."""

import dataclasses
import itertools
import json
from typing import Any

import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from app.api.responses import translate as translation
from app.api.responses.conversation import Conversation
from app.api.responses.schema import ResponsesRequest
from app.api.responses.store import ResponseStore
from app.core.request import FinishReason
from app.errors import NotFoundError, QueueFullError
from app.text.reasoning import THINK
from tests.api.conftest import IM_END, MODEL, Server, start_server
from tests.api.fake_engine import READY, say

ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
SUB = '<tool_call>\n{"name": "sub", "arguments": {}}\n</tool_call>'
TURN = f"<think>Hm</think>Yo\n{ADD}\n{SUB}"
TOOLS: Any = [
    {"type": "function", "name": name, "parameters": {"type": "object"}, "strict": False} for name in ("add", "sub")
]


def end(text: str) -> Any:
    """A script that says a text and then stops, as a model does by itself."""
    return say([*text.encode(), IM_END], reason=FinishReason.STOP)


def turns(prompt: list[int]) -> list[tuple[str, str]]:
    """(role, content) of all messages in a prompt of the test's template."""
    text = "".join(chr(token) if token < 256 else "\x01\x02"[token - 256] for token in prompt)
    parts = [part.split("\n", 1) for part in text.split("\x01") if part]
    return [(role, content.removesuffix("\x02\n")) for role, content in parts]


@pytest.fixture
def client(server: Server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


@pytest.fixture
def thinks(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model reasons, calls tools, and has room for their descriptions."""
    format_ = dataclasses.replace(server.service.message_format, reasoning=THINK)
    monkeypatch.setitem(vars(server.service), "message_format", format_)
    server.engine.ready = msgspec.structs.replace(READY, max_model_len=2048)


def test_a_response(client: openai.OpenAI, server: Server) -> None:
    server.engine.script = end("Hello")
    answer = client.responses.create(
        model=MODEL, input="Hi", instructions="Be brief", max_output_tokens=9, top_p=0.5, metadata={"a": "b"}
    )
    assert (answer.output_text, answer.status, answer.error) == ("Hello", "completed", None)
    (message,) = answer.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert (answer.temperature, answer.top_p, answer.max_output_tokens) == (0.6, 0.5, 9)  # the first: the model's own
    assert (answer.metadata, answer.instructions, answer.model) == ({"a": "b"}, "Be brief", MODEL)
    sent = server.engine.last_command()
    assert turns(sent.prompt_token_ids) == [("system", "Be brief"), ("user", "Hi"), ("assistant", "")]
    assert (sent.sampling.max_tokens, sent.sampling.top_p) == (9, 0.5)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (len(sent.prompt_token_ids), 6)


def test_a_response_that_is_cut(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="Hi", max_output_tokens=2)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.output[0].status, answer.output_text) == ("incomplete", "He")


def test_sampling_fields_of_chats_are_taken(client: openai.OpenAI, server: Server) -> None:
    fields: Any = {"stop": ["x", "lo"], "include_stop_str_in_output": True}
    server.engine.script = end("Hello, you")
    assert client.responses.create(model=MODEL, input="Hi", extra_body=fields).output_text == "Hello"
    fields = {"stop": "l", "structured_outputs": {"regex": "[a-z]+"}}
    assert client.responses.create(model=MODEL, input="Hi", extra_body=fields).output_text == "He"
    assert "[a-z]+" in server.engine.last_command().sampling.grammar


def test_a_bound_beyond_the_context_is_the_context(client: openai.OpenAI, server: Server) -> None:
    """Agents ask for tens of thousands of tokens, whatever is left."""
    answer = client.responses.create(model=MODEL, input="Hi", max_output_tokens=32_000)
    assert answer.max_output_tokens == 32_000
    sent = server.engine.last_command()
    assert sent.sampling.max_tokens == READY.max_model_len - len(sent.prompt_token_ids)


def test_items_become_messages(client: openai.OpenAI, server: Server) -> None:
    part = {"type": "input_text", "text": "b"}
    client.responses.create(
        model=MODEL,
        input=[
            {"role": "developer", "content": "a"},
            {"type": "message", "role": "user", "content": [part, part]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
            {"role": "user", "content": "d"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "phase": "final_answer"},
            {"role": "user", "content": "e"},
        ],
    )
    assert turns(server.engine.last_command().prompt_token_ids) == [
        ("system", "a"),  # as the template calls it
        ("user", "b\nb"),
        ("assistant", "c"),
        ("user", "d"),
        ("assistant", "no"),
        ("user", "e"),
        ("assistant", ""),
    ]


@pytest.mark.usefixtures("thinks")
def test_every_event_of_a_stream(client: openai.OpenAI, server: Server) -> None:
    server.engine.script = end(TURN)
    events = list(client.responses.create(model=MODEL, input="Hi", tools=TOOLS, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert [kind for kind, _ in itertools.groupby(kinds)] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    final = events[-1].response
    reasoning, message, add, sub = final.output
    assert [item.status for item in final.output] == ["completed"] * 4
    assert (reasoning.content[0].text, message.content[0].text) == ("Hm", "Yo")
    assert [(call.name, call.arguments) for call in (add, sub)] == [("add", '{"a": 1}'), ("sub", "{}")]
    assert add.call_id != sub.call_id
    assert final.usage.output_tokens_details.reasoning_tokens == len("<think>Hm</think>")
    done = [event for event in events if event.type == "response.output_item.done"]
    assert [event.item for event in done] == final.output
    pieces: dict[str, str] = {}
    for event in events:
        if (index := getattr(event, "output_index", None)) is not None:
            assert getattr(event, "item_id", final.output[index].id) == final.output[index].id
        if event.type.endswith(".delta"):
            pieces[event.item_id] = pieces.get(event.item_id, "") + event.delta
    assert list(pieces.values()) == ["Hm", "Yo", '{"a": 1}', "{}"]


@pytest.mark.usefixtures("thinks")
def test_the_helper_of_the_client_puts_a_stream_together(client: openai.OpenAI, server: Server) -> None:
    server.engine.script = end(TURN)
    whole = client.responses.create(model=MODEL, input="Hi", tools=TOOLS)
    with client.responses.stream(model=MODEL, input="Hi", tools=TOOLS) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == whole.output_text == "Yo"
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call", "function_call"]
    assert [(i.name, i.arguments) for i in final.output[2:]] == [(i.name, i.arguments) for i in whole.output[2:]]


@pytest.mark.usefixtures("thinks")
def test_results_of_tools_go_back(client: openai.OpenAI, server: Server) -> None:
    """The model reads the same prompt, whether the client sends the whole history or the id of the last response."""
    server.engine.script = end(TURN)
    first = client.responses.create(model=MODEL, input="Hi", tools=TOOLS)
    calls = [item for item in first.output if item.type == "function_call"]
    results: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "2"} for call in calls]
    client.responses.create(model=MODEL, input=results, tools=TOOLS, previous_response_id=first.id)
    by_id = server.engine.last_command().prompt_token_ids
    history: Any = [{"role": "user", "content": "Hi"}, *first.output, *results]
    client.responses.create(model=MODEL, input=history, tools=TOOLS)
    by_history = server.engine.last_command().prompt_token_ids
    assert by_id == by_history
    said = turns(by_id)[1:]  # without the descriptions of tools
    assert [role for role, _ in said] == ["user", "assistant", "user", "user", "assistant"]
    assert said[1][1].count("<tool_call>") == 2
    assert all("<tool_response>" in result for _, result in said[2:4])


@pytest.mark.usefixtures("thinks")
def test_a_conversation_goes_on_after_a_call_that_was_cut(client: openai.OpenAI, server: Server) -> None:
    server.engine.script = say(f"Yo\n{ADD[:-20]}")
    first = client.responses.create(model=MODEL, input="Hi", tools=TOOLS)
    assert [(item.type, item.status) for item in first.output] == [
        ("message", "completed"),
        ("function_call", "incomplete"),
    ]
    client.responses.create(model=MODEL, input="So?", tools=TOOLS, previous_response_id=first.id)
    said = turns(server.engine.last_command().prompt_token_ids)[1:]
    assert said == [("user", "Hi"), ("assistant", "Yo"), ("user", "So?"), ("assistant", "")]


def test_a_wanted_call_is_constrained(client: openai.OpenAI, server: Server) -> None:
    server.engine.ready = msgspec.structs.replace(READY, max_model_len=2048)
    server.engine.script = end(ADD)
    for choice in ("required", {"type": "function", "name": "add"}):
        answer = client.responses.create(model=MODEL, input="Hi", tools=TOOLS, tool_choice=choice)
        (call,) = answer.output
        assert (call.name, call.arguments) == ("add", '{"a": 1}')
        assert server.engine.last_command().sampling.grammar


def test_a_stream_ends_with_its_own_event(server: Server) -> None:
    answer = server.post("/v1/responses", {"input": "Hi", "stream": True, "max_output_tokens": 2})
    events = [part.split("\n") for part in answer.text.split("\n\n") if part and not part.startswith(":")]
    assert [name for name, _ in events] == [f"event: {json.loads(data[6:])['type']}" for _, data in events]
    assert events[-1][0] == "event: response.incomplete"


async def test_the_async_client(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        server.engine.script = end("Hello")
        assert (await client.responses.create(model=MODEL, input="Hi")).output_text == "Hello"
        async with client.responses.stream(model=MODEL, input="Hi") as stream:
            assert (await stream.get_final_response()).output_text == "Hello"


class City(BaseModel):
    name: str


def test_parse_with_a_model(client: openai.OpenAI, server: Server) -> None:
    server.engine.script = end('{"name": "Paris"}')
    answer = client.responses.parse(model=MODEL, input="Hi", text_format=City)
    assert answer.output_parsed == City(name="Paris")
    assert answer.text.format.schema_["title"] == "City"
    assert server.engine.last_command().sampling.grammar
    client.responses.create(model=MODEL, input="Hi", text={"format": {"type": "json_object"}})
    assert server.engine.last_command().sampling.grammar


def test_logprobs_of_a_text(client: openai.OpenAI) -> None:
    options: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 1, "max_output_tokens": 2}
    whole = client.responses.create(model=MODEL, input="Hi", **options).output[0].content[0].logprobs
    assert [(token.token, token.logprob, token.top_logprobs[0].logprob) for token in whole] == [
        ("H", -0.72, -0.25),
        ("e", -1.01, -0.25),
    ]
    events = list(client.responses.create(model=MODEL, input="Hi", stream=True, **options))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [event.logprobs[0].token for event in deltas] == ["H", "e"]
    assert [token.token for event in events if event.type.endswith("text.done") for token in event.logprobs] == [*"He"]


# ---------------------------------------------------------------------- what later responses go on from


def test_a_conversation_by_ids(client: openai.OpenAI, server: Server) -> None:
    server.engine.script = end("One")
    first = client.responses.create(model=MODEL, input="1", instructions="for the first")
    server.engine.script = end("Two")
    streamed = client.responses.create(model=MODEL, input="2", previous_response_id=first.id, stream=True)
    second = list(streamed)[-1].response
    assert second.previous_response_id == first.id
    client.responses.create(model=MODEL, input="3", previous_response_id=second.id, instructions="now")
    said = [("user", "1"), ("assistant", "One"), ("user", "2"), ("assistant", "Two"), ("user", "3")]
    assert turns(server.engine.last_command().prompt_token_ids) == [("system", "now"), *said, ("assistant", "")]


def test_stored_responses_are_read_and_deleted(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="Hi")
    assert client.responses.retrieve(answer.id) == answer
    with pytest.raises(openai.BadRequestError, match="stream"):
        client.responses.retrieve(answer.id, stream=True)
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="Hi", previous_response_id=answer.id)
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")


def test_responses_with_store_false_are_not_stored(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="Hi", store=False)
    assert answer.model_extra["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_several_api_workers_refuse_to_store_responses(model_folder: Any) -> None:
    servers = start_server(model_folder, api_workers=2)
    server = next(servers)
    try:
        assert server.post("/v1/responses", {"input": "Hi"}).json()["store"] is False
        for field, value in (("store", True), ("previous_response_id", "resp_1")):
            answer = server.post("/v1/responses", {"input": "Hi", field: value})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
            assert "api_workers" in answer.json()["error"]["message"]
    finally:
        next(servers, None)


@given(
    st.lists(st.tuples(st.sampled_from("pgd"), st.integers(0, 2), st.integers(0, 5), st.integers(0, 60)), max_size=40)
)
def test_the_store_keeps_what_each_tenant_used_last_within_its_bounds(steps: list[tuple[str, int, int, int]]) -> None:
    store = ResponseStore(4, 250)
    known: dict[str, dict[str, int]] = {"0": {}, "1": {}, "2": {}}  # sizes, least recently used first
    for serial, (step, tenant, which, length) in enumerate(steps):
        owner = str(tenant)
        mine = known[owner]
        id_ = list(mine)[which] if step != "p" and which < len(mine) else f"new-{serial}"
        if step == "p":
            body, items = {"text": "x" * length}, [{"role": "user"}]
            store.put(owner, items, id_, body)
            mine[id_] = len(json.dumps([body, items], separators=(",", ":"))) - 3
            check_what_was_lost(store, known)
        elif id_ not in mine:
            with pytest.raises(NotFoundError):
                (store.items if step == "g" else store.delete)(owner, id_)
        elif step == "g":
            store.items(owner, id_)
            mine[id_] = mine.pop(id_)
        else:
            store.delete(owner, id_)
            del mine[id_]
    for owner, theirs in known.items():
        assert list(store._stored[owner]) == list(theirs)
        for id_ in theirs:
            store.body(owner, id_)
            with pytest.raises(NotFoundError):
                store.body("another", id_)


def check_what_was_lost(store: ResponseStore, known: dict[str, dict[str, int]]) -> None:
    """It was what its owner had not used for longest, and only if there was too much, and the owner had more than most.

    Removes it from what is `known`.
    """
    owners = {owner: theirs for owner, theirs in known.items() if theirs}
    count, size = sum(map(len, owners.values())), sum(sum(theirs.values()) for theirs in owners.values())
    for owner, theirs in owners.items():
        kept = list(store._stored[owner])
        lost = list(theirs)[: len(theirs) - len(kept)]
        assert list(theirs) == lost + kept
        is_beyond_a_share = len(theirs) > 4 / len(owners) or sum(theirs.values()) > 250 / len(owners)
        assert not lost or (is_beyond_a_share and (count > 4 or size > 250))
        for id_ in lost:
            del theirs[id_]
    assert sum(map(len, known.values())) <= 4
    assert sum(sum(theirs.values()) for theirs in known.values()) <= 250


# ---------------------------------------------------------------------- tools


def test_items_of_tools_and_reasoning_become_a_chats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation, "validate", lambda _, fields, _ignored: fields)
    call = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'}
    body = ResponsesRequest.model_validate(
        {
            "input": [
                {"role": "user", "content": "1+1?"},
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
                {"role": "assistant", "content": "Wait"},
                call,
                {**call, "call_id": "c2"},
                {"type": "function_call_output", "call_id": "c1", "output": "2"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
                {"role": "assistant", "content": "2"},
                {"role": "assistant", "content": "!"},
            ],
            "tools": [{"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}],
            "tool_choice": {"type": "function", "name": "add"},
            "parallel_tool_calls": False,
        }
    )
    chat: Any = translation.to_chat(body, Conversation.of(body, ResponseStore(1, 1), "me"))
    function = {"name": "add", "arguments": '{"a": 1}'}
    assert chat["messages"] == [
        {"role": "user", "content": "1+1?"},
        {
            "role": "assistant",
            "content": "Wait",
            "reasoning_content": "Hm",
            "tool_calls": [{"id": id_, "type": "function", "function": function} for id_ in ("c1", "c2")],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "tool", "tool_call_id": "c2", "content": "2"},
        {"role": "assistant", "content": "2"},
        {"role": "assistant", "content": "!"},
    ]
    tool = {"name": "add", "parameters": {"type": "object"}, "strict": True}
    assert chat["tools"] == [{"type": "function", "function": tool}]
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert chat["parallel_tool_calls"] is False


# ---------------------------------------------------------------------- errors

HI = {"input": "Hi"}
LARK: Any = {
    "type": "custom",
    "name": "edit",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'},
}
WRONG = [
    ({}, "input"),
    ({"input": []}, "input"),
    ({"input": 7}, "input"),
    ({"input": "x" * 300}, "input"),
    ({"input": [7]}, "input[0]"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "boss", "content": "Hi"}]}, "input[0].role"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    ({**HI, "n": 2}, "n"),
    ({**HI, "stop": [""]}, "stop"),
    ({**HI, "guided_regex": "(a"}, "guided_regex"),
    ({**HI, "guided_regex": "a", "text": {"format": {"type": "json_object"}}}, "guided_regex"),
    ({**HI, "model": "other"}, "model"),
    ({**HI, "background": True, "store": False}, "background"),
    ({**HI, "conversation": "c"}, "conversation"),
    ({**HI, "prompt": {"id": "p"}}, "prompt"),
    ({**HI, "truncation": "always"}, "truncation"),
    ({**HI, "max_output_tokens": 0}, "max_output_tokens"),
    ({**HI, "temperature": -1}, "temperature"),
    ({**HI, "top_logprobs": 2}, "top_logprobs"),
    ({**HI, "include": ["message.output_text.logprobs"], "top_logprobs": 6}, "top_logprobs"),
    ({**HI, "include": ["everything"]}, "include[0]"),
    ({**HI, "reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({**HI, "tools": [{"type": "file_search"}]}, "tools[0]"),
    ({**HI, "tools": [{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}]}, "tools[0].tools[0]"),
    ({**HI, "tools": TOOLS, "tool_choice": {"type": "function", "name": "mul"}}, "tool_choice"),
    ({**HI, "tools": [LARK], "tool_choice": "required"}, "tool_choice"),
    ({**HI, "tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
    ({**HI, "tools": [{"type": "function", "name": "f"}] * 2}, "tools"),
    ({**HI, "tool_choice": {"type": "mcp"}}, "tool_choice"),
    ({**HI, "tool_choice": "required"}, "tool_choice"),
    ({**HI, "text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({**HI, "text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({**HI, "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 5}}}}, "text.format.schema"),
    ({**HI, "metadata": {"a": 1}}, "metadata.a"),
    ({**HI, "previous_response_id": "resp_x"}, "previous_response_id"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=[f"{param}-{i}" for i, (_, param) in enumerate(WRONG)])
def test_a_wrong_field_is_named(server: Server, body: dict[str, Any], param: str) -> None:
    answer = server.post("/v1/responses", body)
    error = answer.json()["error"]
    assert answer.status_code == (404 if param == "model" else 400)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert error["message"]
    assert server.engine.commands.empty()


def test_the_error_says_what_a_field_of_chats_is_called_here(server: Server) -> None:
    assert "at least 1 item" in server.post("/v1/responses", {"input": []}).json()["error"]["message"]
    for path, body, names in (
        (
            "/v1/responses",
            HI,
            {
                "max_tokens": "max_output_tokens",
                "response_format": "text.format",
                "logprobs": "top_logprobs",
                "reasoning_effort": "reasoning.effort",
            },
        ),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9},
            {"stop": "stop_sequences"},
        ),
    ):
        for name, here in names.items():
            answer = server.post(path, {**body, name: 1})
            assert answer.status_code == 400
            assert f"{name} is not supported; give {here}" in answer.json()["error"]["message"]


def test_a_failed_response(client: openai.OpenAI, server: Server) -> None:
    server.engine.script = say("He", reason=FinishReason.ERROR, error="the model failed")
    *_, told, failed = client.responses.create(model=MODEL, input="Hi", stream=True)
    assert (told.type, told.message) == ("error", "the model failed")
    assert (failed.type, failed.response.status) == ("response.failed", "failed")
    assert failed.response.error.message == "the model failed"
    assert failed.response.output[0].status == "incomplete"
    server.engine.script = say("", reason=FinishReason.ERROR, error="the model failed")
    with client.responses.stream(model=MODEL, input="Hi") as stream:  # the helper wants a response in front of all
        assert [event.type for event in stream][-1] == "response.failed"
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model=MODEL, input="Hi")
    server.engine.refusal = QueueFullError("full")
    with pytest.raises(openai.RateLimitError):
        client.responses.create(model=MODEL, input="Hi", stream=True)
