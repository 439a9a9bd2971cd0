"""Responses that later ones may go on from, in bounded memory."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import msgspec

from app.api.chat_fields import Fields
from app.api.sse import encode_json
from app.errors import NotFoundError
from app.settings import ServerSettings

_decode = msgspec.json.Decoder().decode


_Key = tuple[str, str]
"""Whose it is, and its id: a tenant sees only its own."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """As JSON: its size is known, and nobody can change it."""

    body: bytes
    messages: bytes

    @property
    def size(self) -> int:
        return len(self.body) + len(self.messages)


class ResponseStore:
    """Keeps what was used last, as many as fit both limits. Of one process: others do not see it."""

    def __init__(self, max_responses: int, max_bytes: int) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._stored: OrderedDict[_Key, _Stored] = OrderedDict()
        self._size = 0

    @classmethod
    def of(cls, settings: ServerSettings) -> "ResponseStore":
        """As the settings have it: several API workers share their connections, but no memory, so they keep nothing."""
        return cls(settings.max_stored_responses if settings.api_workers == 1 else 0, settings.max_stored_bytes)

    @property
    def is_enabled(self) -> bool:
        """Whether it can keep anything."""
        return self._max_responses > 0 and self._max_bytes > 0

    def put(self, owner: str, response_id: str, body: Fields, messages: list[Fields]) -> None:
        """Keep a response, and the conversation that it ends: all messages but for the instructions."""
        stored = _Stored(encode_json(body), encode_json(messages))
        self._stored[owner, response_id] = stored
        self._size += stored.size
        while len(self._stored) > self._max_responses or self._size > self._max_bytes:
            _, oldest = self._stored.popitem(last=False)
            self._size -= oldest.size

    def body(self, owner: str, response_id: str) -> bytes:
        """The response as it was sent. Raises NotFoundError."""
        return self._use((owner, response_id)).body

    def messages(self, owner: str, response_id: str) -> list[Fields]:
        """The conversation. Raises NotFoundError."""
        messages: Any = _decode(self._use((owner, response_id)).messages)
        return list(messages)

    def delete(self, owner: str, response_id: str) -> None:
        """Forget a response; those that go on from it stay whole. Raises NotFoundError."""
        self._size -= self._use((owner, response_id)).size
        del self._stored[owner, response_id]

    def _use(self, key: _Key) -> _Stored:
        if key not in self._stored:
            raise NotFoundError(f"no response {key[1]!r:.80} is stored here (any more)", "response_id")
        self._stored.move_to_end(key)
        return self._stored[key]
