"""Tokens of reasoning are counted. Where a budget of them is used up, the model goes on with the answer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import anthropic
import msgspec
import openai
import pytest

from app.core.request import FinishReason
from app.core.sampling import Logprobs
from app.core.wire import GenerateCommand, RequestOutput
from app.text.reasoning import THINK
from tests.api.conftest import IM_END, MODEL, Server
from tests.api.fake_engine import READY, Script, say
from tests.api.test_openai_client import matcher_of

HI: Any = [{"role": "user", "content": "Hi"}]
LONG = "abcdefghijklmnopqrstuvwxyz"
CLOSING = [*b"</think>"]  # the tokens of the test's model are bytes


@pytest.fixture(autouse=True)
def reasons(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model has reasoning."""
    format_ = dataclasses.replace(server.service.message_format, reasoning=THINK)
    monkeypatch.setitem(vars(server.service), "message_format", format_)


def thinks(thoughts: str, per_output: int = 1, answer: str = "Yes") -> Script:
    """A model that thinks, and answers once it has closed its thoughts, or the server has."""

    def script(command: GenerateCommand) -> list[RequestOutput]:
        said = command.progress.token_ids if command.progress else []
        text = answer if bytes(said).endswith(bytes(CLOSING)) else f"<think>{thoughts}</think>{answer}"
        tokens = [*text.encode(), IM_END][: command.sampling.max_tokens - len(said)]
        pieces = [tokens[at : at + per_output] for at in range(0, len(tokens), per_output)]
        wants = command.sampling.logprobs is not None
        outputs = [
            RequestOutput(
                request_id=command.request_id,
                token_ids=piece,
                logprobs=[Logprobs([token], [-1.0]) for token in piece] if wants else [],
                num_cached_tokens=4,
            )
            for piece in pieces
        ]
        outputs[-1].finish_reason = FinishReason.STOP if tokens[-1] == IM_END else FinishReason.LENGTH
        return outputs

    return script


def chat(server: Server, **options: Any) -> Any:
    """The one choice of a chat."""
    answer = server.post("/v1/chat/completions", {"messages": HI, "seed": 7, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(server: Server, **options: Any) -> tuple[str, str]:
    """Reasoning and content of a streamed chat."""
    events = server.events("/v1/chat/completions", {"messages": HI, **options})
    deltas = [event["choices"][0]["delta"] for event in events]
    return tuple("".join(delta.get(name) or "" for delta in deltas) for name in ("reasoning_content", "content"))


@pytest.mark.parametrize("per_output", [1, 3, 5, 99])
@pytest.mark.parametrize("ask", [chat, streamed])
def test_reasoning_beyond_its_budget_is_closed(server: Server, per_output: int, ask: Callable[..., Any]) -> None:
    server.engine.script = thinks(LONG, per_output)
    answer = ask(server, thinking_token_budget=5)
    if ask is streamed:
        assert answer == ("abcde", "Yes")
    else:
        (choice,) = answer["choices"]
        assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("abcde", "Yes")
        assert choice["finish_reason"] == "stop"
        tokens = len("<think>abcde</think>Yes") + 1
        assert (answer["usage"]["completion_tokens"], answer["usage"]["prompt_tokens_details"]) == (
            tokens,
            {"cached_tokens": 4},
        )
    first = server.engine.commands.get_nowait()
    second = server.engine.commands.get_nowait()
    assert first.sampling == second.sampling  # with the seed
    assert second.progress.token_ids == [*b"<think>abcde", *CLOSING]
    assert server.engine.commands.empty()
    assert server.engine.aborted.get_nowait() == first.request_id != second.request_id


@pytest.mark.parametrize("per_output", [1, 3, 7, 99])
@pytest.mark.parametrize(
    ("thoughts", "answer", "in_prompt", "num_tokens"),
    [
        ("Hm", "Yes", False, len("<think>Hm</think>")),
        ("a<b </thin", "<think>", False, len("<think>a<b </thin</think>")),
        ("", "Yes", False, len("<think></think>")),
        ("Hm", "Yes", True, len("Hm</think>")),
        (None, "<thin", False, 0),
        (None, "Hm", True, len("Hm") + 1),  # it never answers; the token that ends the text is within
    ],
)
def test_the_tokens_of_reasoning_are_counted(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    per_output: int,
    thoughts: str | None,
    answer: str,
    in_prompt: bool,
    num_tokens: int,
) -> None:
    """In a stream and without, whatever the engine sends at once, and for all choices together."""
    monkeypatch.setattr(type(server.service.message_format), "ends_in_reasoning", lambda *_: in_prompt)
    text = answer if thoughts is None else f"{'' if in_prompt else '<think>'}{thoughts}</think>{answer}"
    server.engine.script = say([*text.encode(), IM_END], per_output=per_output, reason=FinishReason.STOP)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        whole = client.chat.completions.create(model=MODEL, messages=HI, n=2)
        assert whole.usage.completion_tokens_details.reasoning_tokens == 2 * num_tokens
        counting: Any = {"include_usage": True, "continuous_usage_stats": True}
        chunks = client.chat.completions.create(model=MODEL, messages=HI, stream=True, stream_options=counting)
        usages = [chunk.usage for chunk in chunks]
        counts = [usage.completion_tokens_details.reasoning_tokens for usage in usages]
        assert counts == sorted(counts)
        assert counts[-1] == num_tokens
        response = client.responses.create(model=MODEL, input="Hi")
        assert response.usage.output_tokens_details.reasoning_tokens == num_tokens


@pytest.mark.parametrize("budget", [26, 27, 1000])
@pytest.mark.parametrize("per_output", [1, 99])
def test_reasoning_within_its_budget_is_left_alone(server: Server, budget: int, per_output: int) -> None:
    server.engine.script = thinks(LONG, per_output)
    message = chat(server, thinking_token_budget=budget + len(CLOSING))["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (LONG, "Yes")
    assert server.engine.commands.qsize() == 1


def test_a_character_is_not_cut(server: Server) -> None:
    """Its tokens are its bytes here. What follows a half of one matches no grammar, and is no text."""
    server.engine.script = thinks("ab日cdefgh")
    for budget, thoughts in ((2, "ab"), (3, "ab日"), (4, "ab日"), (5, "ab日"), (6, "ab日c")):
        message = chat(server, thinking_token_budget=budget)["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == (thoughts, "Yes")


def test_a_text_without_reasoning_has_no_bound(server: Server) -> None:
    def script(command: GenerateCommand) -> list[RequestOutput]:
        end = FinishReason.STOP
        return [RequestOutput(request_id=command.request_id, token_ids=[*b"A <think> ", IM_END], finish_reason=end)]

    server.engine.script = script
    message = chat(server, thinking_token_budget=1)["choices"][0]["message"]
    assert (message["content"], "reasoning_content" in message) == ("A <think> ", False)
    assert server.engine.commands.qsize() == 1


def test_output_of_a_schema_has_no_reasoning_to_bound(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the prompt ends inside of reasoning: a closing marker in the output would break it."""
    monkeypatch.setattr(type(server.service.message_format), "ends_in_reasoning", lambda *_: True)
    server.engine.script = say([*b'{"a": 1}', IM_END], reason=FinishReason.STOP)
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    message = chat(server, thinking_token_budget=3, response_format=schema)["choices"][0]["message"]
    assert message["content"] == '{"a": 1}'
    assert server.engine.commands.qsize() == 1


@pytest.mark.parametrize(("max_tokens", "content"), [(13, ""), (20, ""), (21, "Y"), (24, "Yes")])
def test_a_budget_is_within_max_tokens(server: Server, max_tokens: int, content: str) -> None:
    """Twelve tokens of reasoning and its beginning, eight of the closing marker, and four of the answer."""
    server.engine.script = thinks(LONG, 4)
    answer = chat(server, thinking_token_budget=5, max_tokens=max_tokens, logprobs=True)
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (
        content,
        "stop" if content == "Yes" else "length",
    )
    assert answer["usage"]["completion_tokens"] == len(choice["logprobs"]["content"]) == max_tokens


def test_the_thinking_budget_of_messages(server: Server) -> None:
    server.engine.script = thinks(LONG)
    options: Any = {"model": MODEL, "max_tokens": 99, "messages": HI}
    budget: Any = {"type": "enabled", "budget_tokens": 3}
    with anthropic.Anthropic(base_url=server.url, api_key="-", max_retries=0) as client:
        answer = client.messages.create(thinking=budget, **options)
    assert answer.usage.output_tokens_details.thinking_tokens == len("<think>abc</think>")
    assert [(block.type, getattr(block, block.type)) for block in answer.content] == [
        ("thinking", "abc"),
        ("text", "Yes"),
    ]
    assert answer.stop_reason == "end_turn"


def test_a_required_call_may_follow_reasoning_that_was_closed(server: Server) -> None:
    """The grammar of the call takes what was generated, the closing marker, and the call."""
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    server.engine.ready = msgspec.structs.replace(READY, max_model_len=2048)
    server.engine.script = thinks(LONG, answer=call)
    (choice,) = chat(server, thinking_token_budget=5, tools=[tool], tool_choice="required")["choices"]
    assert choice["message"]["reasoning_content"] == "abcde"
    assert [one["function"]["name"] for one in choice["message"]["tool_calls"]] == ["f"]
    sent = server.engine.last_command()
    matcher = matcher_of(server, sent.sampling.grammar)
    assert matcher.consume_tokens([*sent.progress.token_ids, *call.encode()])
    assert matcher.is_accepting()
