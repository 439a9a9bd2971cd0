"""What becomes of a response after its answer: its input items, and work in the background."""

from typing import Any

import openai
import pytest

from app.core.request import FinishReason
from tests.api.conftest import MODEL, Server
from tests.api.fake_engine import say
from tests.patience import PATIENCE, wait_until


@pytest.fixture
def client(server: Server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def test_input_items_are_listed_page_by_page(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="a")
    given: Any = [{"role": "user", "content": [{"type": "input_text", "text": text}]} for text in "bc"]
    second = client.responses.create(model=MODEL, input=given, previous_response_id=first.id)
    items = list(client.responses.input_items.list(second.id, order="asc", limit=1))
    assert [item.content[0].text for item in items] == ["a", "Hello", "b", "c"]
    assert [item.role for item in items] == ["user", "assistant", "user", "user"]
    assert items[1].id == first.output[0].id
    assert len({item.id for item in items}) == 4
    assert list(client.responses.input_items.list(second.id)) == items[::-1]
    page = client.responses.input_items.list(second.id, after=items[2].id, limit=2)
    assert (page.data, page.has_more) == ([items[1], items[0]], False)


@pytest.mark.parametrize("query", [{"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"order": "up"}, {"after": "x"}])
def test_a_wrong_page_is_refused_by_the_name_of_its_field(
    client: openai.OpenAI, server: Server, query: dict[str, str]
) -> None:
    response = client.responses.create(model=MODEL, input="a")
    answer = server.get(f"/v1/responses/{response.id}/input_items", params=query)
    assert answer.json()["error"]["param"] == next(iter(query))


def test_the_tokens_of_an_input_are_those_of_its_response(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="a", instructions="b")
    asked: Any = {"model": MODEL, "input": "c", "previous_response_id": first.id}
    counted = client.responses.input_tokens.count(**asked)
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens == client.responses.create(**asked).usage.input_tokens > first.usage.input_tokens


def begin(client: openai.OpenAI, server: Server) -> Any:
    """Begin a response that does not get on until the engine is released."""
    server.engine.released.clear()
    response = client.responses.create(model=MODEL, input="Hi", background=True)
    assert (response.status, response.background, response.output) == ("queued", True, [])
    assert server.engine.commands.get(timeout=PATIENCE)
    assert client.responses.retrieve(response.id).status == "queued"
    return response


def test_a_response_in_the_background_is_there_later(client: openai.OpenAI, server: Server) -> None:
    begun = begin(client, server)
    with pytest.raises(openai.BadRequestError, match="yet"):
        client.responses.create(model=MODEL, input="So?", previous_response_id=begun.id)
    server.engine.released.set()
    wait_until(lambda: client.responses.retrieve(begun.id).status == "incomplete")  # the fake ends by length
    response = client.responses.retrieve(begun.id)
    assert (response.output_text, response.usage.output_tokens) == ("Hello", 5)
    assert client.responses.cancel(begun.id) == response
    again = client.responses.create(model=MODEL, input="So?", previous_response_id=begun.id)
    assert again.usage.input_tokens > response.usage.input_tokens


def test_a_response_in_the_background_is_cancelled(client: openai.OpenAI, server: Server) -> None:
    begun = begin(client, server)
    assert client.responses.cancel(begun.id).status == "cancelled"
    assert server.engine.aborted.get(timeout=PATIENCE)
    assert client.responses.retrieve(begun.id).status == "cancelled"
    assert client.responses.cancel(begun.id).status == "cancelled"


def test_a_response_in_the_background_is_deleted(client: openai.OpenAI, server: Server) -> None:
    begun = begin(client, server)
    client.responses.delete(begun.id)
    assert server.engine.aborted.get(timeout=PATIENCE)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(begun.id)


def test_a_stream_in_the_background_is_read_again(client: openai.OpenAI, server: Server) -> None:
    server.engine.released.clear()
    with client.responses.create(model=MODEL, input="Hi", background=True, stream=True) as stream:
        created = next(iter(stream))
    assert created.type == "response.created"
    server.engine.released.set()  # without a reader
    id_ = created.response.id
    wait_until(lambda: client.responses.retrieve(id_).status == "incomplete")
    events = list(client.responses.retrieve(id_, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hello"
    assert events[-1].response == client.responses.retrieve(id_)
    assert list(client.responses.retrieve(id_, stream=True, starting_after=3)) == events[4:]


def test_a_stream_in_the_background_goes_on_when_its_events_are_forgotten(
    client: openai.OpenAI, server: Server
) -> None:
    server.engine.released.clear()
    with client.responses.create(model=MODEL, input="Hi", background=True, stream=True) as stream:
        id_ = next(iter(stream)).response.id
    wait_until(lambda: not server.service.streams.find("default", id_).is_being_read)
    server.service.streams._forget(("default", id_))
    server.engine.released.set()
    wait_until(lambda: client.responses.retrieve(id_).status == "incomplete")
    assert client.responses.retrieve(id_).output_text == "Hello"
    with pytest.raises(openai.BadRequestError, match="not kept"):
        client.responses.retrieve(id_, stream=True)


def test_a_response_that_fails_in_the_background_says_why(client: openai.OpenAI, server: Server) -> None:
    server.engine.script = say("He", reason=FinishReason.ERROR, error="the model failed")
    begun = client.responses.create(model=MODEL, input="Hi", background=True)
    wait_until(lambda: client.responses.retrieve(begun.id).status == "failed")
    response = client.responses.retrieve(begun.id)
    assert (response.error.message, response.output_text) == ("the model failed", "He")


def test_only_a_response_in_the_background_is_cancelled(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input="Hi")
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_x")
