"""Several requests at once through an engine in this process."""

from collections import deque
from collections.abc import Iterator

from ..core.wire import GenerateCommand, RequestOutput
from ..engine.core import EngineCore
from ..errors import InternalError


def run_crowd(engine: EngineCore, commands: Iterator[GenerateCommand], most: int) -> Iterator[RequestOutput]:
    """Whole outputs, in the order of the commands, of which at most so many run at once. Raises InternalError."""
    done: dict[str, RequestOutput] = {}  # and those that run
    order: deque[str] = deque()
    running = 0
    while True:
        while running < most and (command := next(commands, None)) is not None:
            engine.add(command)
            order.append(command.request_id)
            running += 1
        if not order:
            return
        for output in engine.step().outputs:
            if output.error:
                raise InternalError(output.error)
            if output.request_id in done:
                done[output.request_id].extend(output)
            else:
                done[output.request_id] = output
            running -= output.finish_reason is not None
        while order and order[0] in done and done[order[0]].finish_reason is not None:
            yield done.pop(order.popleft())
