"""The items that a response answers: those of the responses that it continues, and its own input."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...errors import InvalidRequestError, NotFoundError
from ..chat.parts import Fields
from .items import ITEMS, InputItem, ItemReference, MessageItem, ToolsItem
from .schema import ConversationFields
from .store import ResponseStore
from .toolset import ToolSet


@dataclass(frozen=True)
class Conversation:
    """All items that a response answers, and all tools that the model is told of: of a name, the last ones."""

    items: list[InputItem]
    tools: ToolSet

    @classmethod
    def of(cls, body: ConversationFields, store: ResponseStore, owner: str) -> "Conversation":
        """The conversation of a request. Raises InvalidRequestError for what is not stored (any more)."""
        said = body.input
        given: list[InputItem] = [MessageItem(role="user", content=said)] if isinstance(said, str) else said
        items = [*_earlier(body, store, owner), *_dereferenced(given, store, owner)]
        named = {_name(tool): tool for item in items if isinstance(item, ToolsItem) for tool in item.tools}
        for tool in body.tools:
            named.pop(_name(tool), None)
        return cls(items, ToolSet([*body.tools, *named.values()]))

    def to_store(self, unique: str) -> list[Fields]:
        """The items as JSON. Each has an id by which `_dereferenced` finds it: its own, or one with `unique`."""
        return [{"id": f"in_{unique}_{index}"} | _as_json(item) for index, item in enumerate(self.items)]


def _earlier(body: ConversationFields, store: ResponseStore, owner: str) -> list[InputItem]:
    """The items of the response that is continued, with its output."""
    if body.previous_response_id is None:
        return []
    try:
        return ITEMS.validate_python(store.conversation(owner, body.previous_response_id))
    except NotFoundError as error:
        refusal = InvalidRequestError(f"previous_response_id: {error.message}", "previous_response_id")
        refusal.code = "previous_response_not_found"
        raise refusal from None


def _dereferenced(given: list[InputItem], store: ResponseStore, owner: str) -> Iterator[InputItem]:
    """The items, with stored ones in the place of references. The same twice is refused: a small body could be huge."""
    stored: dict[str, dict[str, Fields]] = {}
    for index, item in enumerate(given):
        if not isinstance(item, ItemReference):
            yield item
            continue
        _, _, rest = item.id.partition("_")
        response_id = f"resp_{rest.rpartition('_')[0]}"  # as this server makes ids
        if response_id not in stored:
            stored[response_id] = _by_id(store, owner, response_id)
        if item.id not in stored[response_id]:
            fault = f"no item {item.id!r:.80} is stored here (any more), or it is referred to twice"
            raise InvalidRequestError(f"input[{index}]: {fault}", f"input[{index}]")
        yield from ITEMS.validate_python([stored[response_id].pop(item.id)])


def _by_id(store: ResponseStore, owner: str, response_id: str) -> dict[str, Fields]:
    try:
        return {item["id"]: item for item in store.conversation(owner, response_id)}
    except NotFoundError:
        return {}


def _name(tool: Any) -> str:
    """A tool's name. Hosted ones have none."""
    name: str = getattr(tool, "name", tool.type)
    return name


def _as_json(item: Any) -> Fields:
    given: Fields = {"type": item.type, **item.model_dump(exclude_unset=True, exclude_none=True)}
    if isinstance(item, MessageItem) and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        given["content"] = [{"type": kind, "text": item.content}]
    return given
