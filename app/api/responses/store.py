"""Stored responses, which later ones may continue, in bounded memory."""

from collections import OrderedDict, defaultdict
from dataclasses import dataclass

import msgspec

from ...errors import NotFoundError
from ...settings import ServerSettings
from ...tenants import FairMemory
from ..chat.parts import Fields
from ..edge.answer import AnswerBody, encode_json

_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class _Stored:
    """A response as JSON, so that its size is known, and nobody can change it."""

    body: bytes
    items: bytes

    @property
    def size(self) -> int:
        return len(self.body) + len(self.items)


_MAX_RESPONSES = 1000


class ResponseStore:
    """Keeps the responses of this process that were used last, within two limits.

    A tenant sees only its own. If there are too many, those of the tenants that have most are deleted first.
    """

    def __init__(self, max_responses: int, max_bytes: int) -> None:
        self._is_enabled = max_responses > 0 and max_bytes > 0
        self._stored: defaultdict[str, OrderedDict[str, _Stored]] = defaultdict(OrderedDict)
        """By owner, in the order of their last use."""
        self._counts = FairMemory(max_responses)
        self._bytes = FairMemory(max_bytes)

    @classmethod
    def of(cls, settings: ServerSettings) -> "ResponseStore":
        """From the settings. Several API workers keep nothing, since they share connections but no memory."""
        return cls(_MAX_RESPONSES if settings.api_workers == 1 else 0, settings.max_stored_bytes)

    @property
    def is_enabled(self) -> bool:
        """Whether responses are stored at all."""
        return self._is_enabled

    def put(self, owner: str, items: list[Fields], response_id: str, body: AnswerBody) -> None:
        """Store a response, and the items that it answers, without instructions."""
        stored = _Stored(encode_json(body), encode_json(items))
        self._stored[owner][response_id] = stored
        self._counts.add(owner, 1)
        self._bytes.add(owner, stored.size)
        while debtors := self._counts.debtors or self._bytes.debtors:
            self._forget(debtors[0], next(iter(self._stored[debtors[0]])))

    def body(self, owner: str, response_id: str) -> bytes:
        """The response as it was sent. Raises NotFoundError."""
        return self._use(owner, response_id).body

    def items(self, owner: str, response_id: str) -> list[Fields]:
        """The items that the response answers. Raises NotFoundError."""
        items: list[Fields] = _decode(self._use(owner, response_id).items)
        return items

    def conversation(self, owner: str, response_id: str) -> list[Fields]:
        """The items that the response answers, and its own. Raises NotFoundError."""
        stored = self._use(owner, response_id)
        return [*_decode(stored.items), *_decode(stored.body)["output"]]

    def delete(self, owner: str, response_id: str) -> None:
        """Delete a response. Later ones keep their whole conversation. Raises NotFoundError."""
        self._use(owner, response_id)
        self._forget(owner, response_id)

    def _use(self, owner: str, response_id: str) -> _Stored:
        if response_id not in self._stored.get(owner, ()):
            raise NotFoundError(f"no response {response_id!r:.80} is stored here (yet, or any more)", "response_id")
        self._stored[owner].move_to_end(response_id)
        return self._stored[owner][response_id]

    def _forget(self, owner: str, response_id: str) -> None:
        forgotten = self._stored[owner].pop(response_id)
        self._counts.add(owner, -1)
        self._bytes.add(owner, -forgotten.size)
