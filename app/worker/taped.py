"""Steps on the CPU: in a thread, and those that only decode as tapes (`app.kernels.cpu.tape`)."""

import logging
from collections.abc import Hashable

from ..attention.step import StepShape
from ..kernels.cpu.tape import Tapes
from .execution import Eager, Work

log = logging.getLogger(__name__)

_MOST_DECODES = 64
"""With more of them, what a step computes takes much longer than Python."""


class Taped(Eager):
    """See `Execution`. A step that only decodes is recorded when its number of decodes comes for the first time."""

    def __init__(self, max_num_seqs: int, max_entries: int, max_num_batched_tokens: int) -> None:
        super().__init__(max_num_seqs, max_entries, max_num_batched_tokens)
        self._tapes = Tapes()
        self._not_recordable: set[Hashable] = set()

    def run(self, name: Hashable, work: Work) -> None:
        """See `Execution.run`."""
        if name in self._tapes:
            self._tapes.replay(name)
        elif name in self._not_recordable or not _is_to_record(name):
            work()
        else:
            self._record(name, work)

    def _record(self, name: Hashable, work: Work) -> None:
        try:
            self._tapes.record(name, work)
        except Exception as error:  # whatever it is: what is wrong with the work itself shows without recording, too
            if not self._not_recordable:
                log.info("this model's decodes are not all recorded, and take a little longer: %s", error)
            self._not_recordable.add(name)
            work()


def _is_to_record(name: Hashable) -> bool:
    return isinstance(name, StepShape) and not name.chunks and name.tokens <= _MOST_DECODES
