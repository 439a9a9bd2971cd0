"""Tools of /v1/responses in all their kinds, and what of them goes back to the server."""

import json
from typing import Any

import msgspec
import openai
import pytest

from app.core.request import FinishReason
from app.text.message_format import MessageFormat
from app.text.reasoning import ReasoningParser
from tests.api.conftest import IM_END, MODEL, Server
from tests.api.fake_engine import READY, Script, say

FIND: Any = {"type": "function", "name": "find", "description": "Find it", "parameters": {"type": "object"}}
EDIT: Any = {
    "type": "custom",
    "name": "edit",
    "description": "Edit it",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "*" /.+/'},
}
CRM: Any = {"type": "namespace", "name": "crm", "description": "Customers", "tools": [FIND, EDIT]}
HOSTED: Any = [
    {"type": "web_search", "external_web_access": False},
    {"type": "image_generation", "output_format": "png"},
    {"type": "local_shell"},
    {"type": "tool_search", "execution": "client", "description": "d", "parameters": {"type": "object"}},
]


def call(name: str, **arguments: str) -> str:
    """A call as the model writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def end(text: str) -> Script:
    """A script that says a text and then stops, as a model does by itself."""
    return say([*text.encode(), IM_END], reason=FinishReason.STOP)


def prompt(server: Server) -> str:
    """The last prompt, with its control tokens as other characters."""
    return "".join(chr(token) for token in server.engine.last_command().prompt_token_ids)


@pytest.fixture
def client(server: Server):
    server.engine.ready = msgspec.structs.replace(READY, max_model_len=8192)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


@pytest.fixture
def thinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model reasons, whatever its template shows."""
    monkeypatch.setattr(MessageFormat, "parser", lambda self, *_: ReasoningParser(self.tools.parser(), False))


def test_the_model_is_told_of_the_clients_tools_and_not_of_hosted_ones(client: openai.OpenAI, server: Server) -> None:
    client.responses.create(model=MODEL, input="Hi", tools=[*HOSTED, FIND, EDIT])
    told = [json.loads(line) for line in prompt(server).splitlines() if line.startswith('{"type"')]
    assert [tool["function"]["name"] for tool in told] == ["find", "edit"]
    assert told[1]["function"]["parameters"]["required"] == ["input"]
    assert EDIT["format"]["definition"] in told[1]["function"]["description"]


def test_a_tool_of_a_namespace_is_called_by_both_names(client: openai.OpenAI, server: Server) -> None:
    server.engine.script = end(call("crm__find", who="Ann"))
    answer = client.responses.create(model=MODEL, input="Hi", tools=[CRM, FIND])
    assert "Customers\\nFind it" in prompt(server)
    (item,) = answer.output
    assert (item.type, item.name, item.namespace) == ("function_call", "find", "crm")
    assert json.loads(item.arguments) == {"who": "Ann"}
    server.engine.script = end(call("find"))
    (item,) = client.responses.create(model=MODEL, input="Hi", tools=[CRM, FIND]).output
    assert (item.name, item.namespace) == ("find", None)
    (item,) = client.responses.create(model=MODEL, input="Hi", tools=[CRM]).output
    assert (item.name, item.namespace) == ("find", "crm")  # there is no other one


@pytest.mark.parametrize("name", ["edit", "crm__edit"])
def test_a_tool_that_takes_a_text_gets_it(client: openai.OpenAI, server: Server, name: str) -> None:
    text = '*** Begin "Patch"\n+\\n é'
    server.engine.script = end(call(name, input=text))
    tools = [EDIT if name == "edit" else CRM]
    (item,) = client.responses.create(model=MODEL, input="Hi", tools=tools).output
    assert (item.type, item.name, item.input) == ("custom_tool_call", "edit", text)
    events = list(client.responses.create(model=MODEL, input="Hi", tools=tools, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events[2:-1]]
    assert kinds == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]
    assert (events[2].item.input, events[3].delta, events[4].input, events[5].item.input) == ("", text, text, text)


def test_a_text_that_is_cut_or_not_of_the_form_is_what_the_model_wrote(client: openai.OpenAI, server: Server) -> None:
    server.engine.script = say(call("edit", input="*** Begin Patch")[:-22])
    (item,) = client.responses.create(model=MODEL, input="Hi", tools=[EDIT]).output
    assert (item.input, item.model_extra["status"]) == ("*** Begin", "incomplete")
    server.engine.script = end(call("edit", text="a"))
    (item,) = client.responses.create(model=MODEL, input="Hi", tools=[EDIT]).output
    assert item.input == '{"text": "a"}'


@pytest.mark.usefixtures("thinks")
def test_what_was_given_out_is_taken_back(client: openai.OpenAI, server: Server) -> None:
    """The same prompt follows from the id, from all items, from references to them, and from what Codex sends back."""
    tools = [CRM, EDIT]
    server.engine.script = end(f"<think>Hm</think>Yo\n{call('crm__find', who='Ann')}\n{call('edit', input='*a')}")
    include: Any = {"include": ["reasoning.encrypted_content"], "tools": tools, "model": MODEL}
    first = client.responses.create(input="Hi", **include)
    assert [item.type for item in first.output] == ["reasoning", "message", "function_call", "custom_tool_call"]
    results: Any = [
        {
            "type": "function_call_output",
            "call_id": first.output[2].call_id,
            "output": [{"type": "input_text", "text": "7"}],
        },
        {"type": "custom_tool_call_output", "call_id": first.output[3].call_id, "output": "Done"},
    ]
    said: Any = {"role": "user", "content": "Hi"}
    reasoning, *others = [item.model_dump(exclude_none=True) for item in first.output]
    del reasoning["content"]
    prompts = []
    for body in (
        {"previous_response_id": first.id, "input": results},
        {"input": [said, *first.output, *results]},
        {"input": [said, *({"type": "item_reference", "id": item.id} for item in first.output), *results]},
        {"input": [said, reasoning, *others, *results]},
    ):
        client.responses.create(**include, **body)
        prompts.append(prompt(server))
    assert prompts == prompts[:1] * 4
    assert '"name": "crm__find", "arguments": {"who": "Ann"}' in prompts[0]
    assert '"name": "edit", "arguments": {"input": "*a"}' in prompts[0]
    assert "7" in prompts[0]


def test_a_call_that_was_cut_may_have_a_result(client: openai.OpenAI, server: Server) -> None:
    """Some clients answer to each call, if only with an error."""
    server.engine.script = say(call("find", who="Ann")[:-22])
    first = client.responses.create(model=MODEL, input="Hi", tools=[FIND])
    (item,) = first.output
    assert item.status == "incomplete"
    result: Any = {"type": "function_call_output", "call_id": item.call_id, "output": "not JSON"}
    prompts = []
    for body in (
        {"previous_response_id": first.id, "input": [result]},
        {"input": [{"role": "user", "content": "Hi"}, item, result]},
    ):
        client.responses.create(model=MODEL, tools=[FIND], **body)
        prompts.append(prompt(server))
    assert prompts[0] == prompts[1]
    assert '"name": "find"' in prompts[0]
    assert "not JSON" in prompts[0]


def test_more_tools_may_come_with_the_input(client: openai.OpenAI, server: Server) -> None:
    items: Any = [{"type": "additional_tools", "role": "developer", "tools": [CRM]}, {"role": "user", "content": "Hi"}]
    first = client.responses.create(model=MODEL, input=items)
    assert "crm__find" in prompt(server)
    client.responses.create(model=MODEL, input="So?", previous_response_id=first.id)
    assert "crm__find" in prompt(server)
    fewer: Any = {**items[0], "tools": [{**CRM, "tools": [EDIT]}]}
    client.responses.create(model=MODEL, input=[fewer, items[1]], previous_response_id=first.id)
    assert "crm__find" not in (told := prompt(server))
    assert "crm__edit" in told


def test_an_item_is_referred_to_once(client: openai.OpenAI) -> None:
    """A body of many small references to one long item would become a huge prompt."""
    first = client.responses.create(model=MODEL, input="Hi")
    reference: Any = {"type": "item_reference", "id": first.output[0].id}
    client.responses.create(model=MODEL, input=[reference])
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input=[reference, reference])
    assert caught.value.param == "input[1]"


def test_a_choice_among_tools(client: openai.OpenAI, server: Server) -> None:
    client.responses.create(
        model=MODEL,
        input="Hi",
        tools=[CRM, {**FIND, "name": "look"}],
        tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]},
    )
    assert '"name": "crm__find"' not in (told := prompt(server))
    assert '"name": "look"' in told
    client.responses.create(model=MODEL, input="Hi", tools=[CRM], tool_choice={"type": "function", "name": "find"})
    assert "crm__find" in server.engine.last_command().sampling.grammar
    digits: Any = {**EDIT, "format": {"type": "grammar", "syntax": "regex", "definition": "[0-9]+"}}
    client.responses.create(model=MODEL, input="Hi", tools=[digits], tool_choice="required")
    assert "[0-9]+" in server.engine.last_command().sampling.grammar
