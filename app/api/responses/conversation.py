"""The items that a response answers: those of the responses that it continues, and its own input."""

from dataclasses import dataclass
from typing import Any

from app.api.chat.parts import Fields
from app.api.responses.items import ITEMS, InputItem, ItemReference, MessageItem, ToolsItem
from app.api.responses.schema import ConversationFields
from app.api.responses.store import ResponseStore
from app.api.responses.toolset import ToolSet
from app.errors import InvalidRequestError, NotFoundError


@dataclass(frozen=True)
class Conversation:
    """All items that a response answers, and all tools that the model is told of."""

    items: list[InputItem]
    tools: ToolSet

    @classmethod
    def of(cls, body: ConversationFields, store: ResponseStore, owner: str) -> "Conversation":
        """The conversation of a request. Raises InvalidRequestError for what is not stored (any more)."""
        items = [*_earlier(body, store, owner), *_input(body, store, owner)]
        more = [tool for item in items if isinstance(item, ToolsItem) for tool in item.tools]
        return cls(items, ToolSet([*body.tools, *more]))

    def to_store(self, unique: str) -> list[Fields]:
        """The items as JSON. Each has an id by which `_referenced` finds it: its own, or one with `unique`."""
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


def _input(body: ConversationFields, store: ResponseStore, owner: str) -> list[InputItem]:
    if isinstance(body.input, str):
        return [MessageItem(role="user", content=body.input)]
    return [
        _referenced(item, f"input[{index}]", store, owner) if isinstance(item, ItemReference) else item
        for index, item in enumerate(body.input)
    ]


def _referenced(reference: ItemReference, where: str, store: ResponseStore, owner: str) -> InputItem:
    """The item with an id. The middle of the ids that this server makes is that of their response's id."""
    _, _, rest = reference.id.partition("_")
    try:
        items = store.conversation(owner, f"resp_{rest.rpartition('_')[0]}")
        found: list[InputItem] = ITEMS.validate_python([item for item in items if item["id"] == reference.id])
        return found[0]
    except (NotFoundError, IndexError):
        raise InvalidRequestError(f"{where}: no item {reference.id!r:.80} is stored here (any more)", where) from None


def _as_json(item: Any) -> Fields:
    given: Fields = {"type": item.type, **item.model_dump(exclude_unset=True, exclude_none=True)}
    if isinstance(item, MessageItem) and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        given["content"] = [{"type": kind, "text": item.content}]
    return given
