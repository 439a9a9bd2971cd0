"""Which adapters there are, and which of the worker's slots each is in."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count

from ..core.request import NO_ADAPTER
from ..core.step import Worker


@dataclass(frozen=True)
class Adapter:
    """One that is loaded, or is being loaded."""

    folder: str
    slot: int
    salt: str
    """Keeps what was computed with it apart from all else: no two that were ever loaded have the same."""
    loading: Future[None]

    @property
    def is_ready(self) -> bool:
        """Whether requests may have it."""
        return self.loading.done() and not self.loading.exception()

    @property
    def has_failed(self) -> bool:
        """Whether it could not be loaded."""
        return self.loading.done() and not self.is_ready


class Adapters:
    """Adapters by name. Requests of one that is unloaded keep its slot until they end."""

    def __init__(self, worker: Worker, num_slots: int, slots_in_use: Callable[[], set[int]]) -> None:
        """`slots_in_use`: those that requests have."""
        self._slots_in_use = slots_in_use
        self._worker = worker
        self._num_slots = num_slots
        self._adapters: dict[str, Adapter] = {}
        self._former: dict[str, Adapter] = {}
        """By folder: adapters without a name, for requests that had them before an engine died."""
        self._numbers = count(1)

    @property
    def folders(self) -> dict[str, str]:
        """Of those that are loaded, by name."""
        self._forget_failed()
        return {name: adapter.folder for name, adapter in self._adapters.items() if adapter.is_ready}

    def find(self, name: str, folder: str) -> Adapter | None:
        """The adapter of a name; it may still be loading.

        If there is none from this folder, since it was unloaded after the request had come, one is loaded that only
        such requests have. An empty folder is any.
        """
        present = self._adapters.get(name)
        if not folder or (present and present.folder == folder):
            return present
        former = self._former.get(folder)
        if former is None or former.has_failed or former.slot not in self._slots_in_use():
            former = self._former[folder] = self._load(folder)
        return former

    def load(self, name: str, folder: str) -> Future[None]:
        """Load an adapter, unless it is there; the future raises an error that says why it cannot be."""
        self._forget_failed()
        if (present := self._adapters.get(name)) is not None:
            if present.folder == folder:
                return present.loading
            return _failed(f"{name} is loaded from another folder; unload it first")
        adapter = self._load(folder)
        if adapter.slot != NO_ADAPTER:
            self._adapters[name] = adapter
        return adapter.loading

    def _load(self, folder: str) -> Adapter:
        """An adapter that is being loaded into a free slot, or has failed if there is none."""
        self._forget_failed()
        taken = {adapter.slot for adapter in self._adapters.values()} | self._slots_in_use()
        slot = next((slot for slot in range(self._num_slots) if slot not in taken), NO_ADAPTER)
        if slot != NO_ADAPTER:
            self._former = {key: former for key, former in self._former.items() if former.slot != slot}
            return Adapter(folder, slot, f"adapter {next(self._numbers)}", self._worker.load_adapter(slot, folder))
        why = "" if len(self._adapters) == self._num_slots else ", and requests of one that was unloaded still run"
        return Adapter(folder, slot, "", _failed(f"there is room for {self._num_slots} adapters (max_loras){why}"))

    def unload(self, name: str) -> None:
        """Forget an adapter, if there is one: no new request can have it."""
        self._adapters.pop(name, None)

    def _forget_failed(self) -> None:
        for name, adapter in list(self._adapters.items()):
            if adapter.has_failed:
                del self._adapters[name]


def _failed(reason: str) -> Future[None]:
    failed: Future[None] = Future()
    failed.set_exception(ValueError(reason))
    return failed
