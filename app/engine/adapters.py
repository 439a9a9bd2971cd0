"""Which adapters there are, and which of the worker's slots each is in."""

from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count

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


class Adapters:
    """Adapters by name. Requests of one that is unloaded keep its slot until they end."""

    def __init__(self, worker: Worker, num_slots: int) -> None:
        self._worker = worker
        self._num_slots = num_slots
        self._adapters: dict[str, Adapter] = {}
        self._numbers = count(1)

    @property
    def folders(self) -> dict[str, str]:
        """Of those that are loaded, by name."""
        self._forget_failed()
        return {name: adapter.folder for name, adapter in self._adapters.items() if adapter.is_ready}

    def find(self, name: str) -> Adapter | None:
        """The adapter of a name; it may still be loading."""
        return self._adapters.get(name)

    def load(self, name: str, folder: str, slots_in_use: Collection[int]) -> Future[None]:
        """Load an adapter, unless it is there; the future raises an error that says why it cannot be.

        `slots_in_use`: of all requests.
        """
        self._forget_failed()
        if (present := self._adapters.get(name)) is not None:
            if present.folder == folder:
                return present.loading
            return _failed(f"{name} is loaded from another folder; unload it first")
        taken = {adapter.slot for adapter in self._adapters.values()} | set(slots_in_use)
        free = [slot for slot in range(self._num_slots) if slot not in taken]
        if not free:
            why = "" if len(self._adapters) == self._num_slots else ", and requests of one that was unloaded still run"
            return _failed(f"there is room for {self._num_slots} adapters (max_loras){why}")
        loading = self._worker.load_adapter(free[0], folder)
        self._adapters[name] = Adapter(folder, free[0], f"adapter {next(self._numbers)}", loading)
        return loading

    def unload(self, name: str) -> None:
        """Forget an adapter, if there is one: no new request can have it."""
        self._adapters.pop(name, None)

    def _forget_failed(self) -> None:
        for name, adapter in list(self._adapters.items()):
            if adapter.loading.done() and adapter.loading.exception():
                del self._adapters[name]


def _failed(reason: str) -> Future[None]:
    failed: Future[None] = Future()
    failed.set_exception(ValueError(reason))
    return failed
