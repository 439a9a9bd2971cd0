"""Steps on the CPU: in a thread, and those that only decode as tapes (`app.kernels.cpu.tape`)."""

import logging
from collections.abc import Hashable

from ..attention.step import StepShape
from ..kernels.cpu.tape import NotRecordableError, Tapes
from .execution import Eager, Work

log = logging.getLogger(__name__)

_MOST_DECODES = 64
"""With more of them, what a step computes takes much longer than Python."""


class Taped(Eager):
    """See `Execution`. A step that only decodes is recorded when its number of decodes comes for the first time."""

    def __init__(self, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        super().__init__(max_num_seqs, max_num_batched_tokens)
        self._tapes: Tapes | None = Tapes()

    def run(self, name: Hashable, work: Work) -> None:
        """See `Execution.run`."""
        if self._tapes is None or not _is_to_record(name):
            work()
        elif name in self._tapes:
            self._tapes.replay(name)
        else:
            self._record(self._tapes, name, work)

    def _record(self, tapes: Tapes, name: Hashable, work: Work) -> None:
        try:
            tapes.record(name, work)
        except NotRecordableError as error:
            log.info("this model's decodes are not recorded, and take a little longer: %s", error)
            self._tapes = None
            work()


def _is_to_record(name: Hashable) -> bool:
    return isinstance(name, StepShape) and not name.chunks and name.tokens <= _MOST_DECODES
