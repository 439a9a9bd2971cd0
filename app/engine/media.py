"""What requests bring along beside tokens goes to the engine once, for all requests of an API worker that have it.

A prepared image may be a hundred megabytes, and each of a call's `n` choices is a request of its own.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from msgspec import structs

from ..core.media import Media, Placed
from ..core.wire import GenerateCommand, RequestCommand


class SentMedia:
    """An API worker's side: which media the engine has, and for which open requests."""

    def __init__(self) -> None:
        self._of: dict[str, list[bytes]] = {}
        """Digests, by request."""
        self._num_requests: Counter[bytes] = Counter()
        """By digest; above 0."""

    def add(self, command: RequestCommand) -> list[Media]:
        """Note a request that is being sent; returns those of its media that the engine does not have yet."""
        if not isinstance(command, GenerateCommand) or not (media := _media_of(command)):
            return []
        self._of[command.request_id] = list(media)
        new = [one for digest, one in media.items() if digest not in self._num_requests]
        self._num_requests.update(media.keys())
        return new

    def remove(self, request_id: str) -> list[bytes]:
        """Note that a request has ended; returns the digests of what no other one has."""
        digests = self._of.pop(request_id, [])
        self._num_requests.subtract(digests)
        unused = [digest for digest in digests if not self._num_requests[digest]]
        for digest in unused:
            del self._num_requests[digest]
        return unused

    def clear(self) -> None:
        """Note that the engine has died."""
        self._of.clear()
        self._num_requests.clear()


class ReceivedMedia:
    """The engine's side: media of all API workers. Several that have equal ones share them."""

    def __init__(self) -> None:
        self._of: dict[bytes, dict[bytes, Media]] = {}
        """By API worker and digest."""

    def keep(self, worker: bytes, media: Sequence[Media]) -> None:
        """Take in what an API worker's next requests have."""
        for one in media:
            known = (of[one.digest] for of in self._of.values() if one.digest in of)
            self._of.setdefault(worker, {})[one.digest] = next(known, one)

    def drop(self, worker: bytes, digests: Sequence[bytes]) -> None:
        """Forget what an API worker has no request for any more."""
        for digest in digests:
            self._of.get(worker, {}).pop(digest, None)

    def drop_all(self, worker: bytes) -> None:
        """Forget all that an API worker has sent."""
        self._of.pop(worker, None)

    def filled(self, worker: bytes, command: GenerateCommand) -> GenerateCommand:
        """A command whose media are only named, with these."""
        known: Mapping[bytes, Media] = self._of.get(worker, {})
        return _with_media(command, lambda media: known.get(media.digest, media))


def bare(command: RequestCommand) -> RequestCommand:
    """A command whose media are only named, by their digests."""
    if not isinstance(command, GenerateCommand):
        return command
    return _with_media(command, lambda media: structs.replace(media, arrays={}))


def _media_of(command: GenerateCommand) -> dict[bytes, Media]:
    media = [one.media for one in command.placed] + ([command.source] if command.source else [])
    return {one.digest: one for one in media}


def _with_media(command: GenerateCommand, change: Callable[[Media], Media]) -> GenerateCommand:
    if command.source is None and not command.placed:
        return command
    placed = [Placed(one.runs, change(one.media)) for one in command.placed]
    return structs.replace(command, source=command.source and change(command.source), placed=placed)
