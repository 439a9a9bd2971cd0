"""A worker without a model: it repeats the prompt.

For measuring the front end and the scheduler alone, and for testing clients without weights. Torch is not needed.
"""

from concurrent.futures import Future
from pathlib import Path

from ..checkpoint.folder import ModelFolder
from ..core.step import BuiltWorker, KVGroup, ModelRunnerOutput, SchedulerOutput
from ..errors import StartupError
from ..settings import Settings
from .limits import initial_limits, with_groups

_NUM_BLOCKS = 65536
_MAX_MODEL_LEN = 8192
"""No model sets a limit."""


class EchoWorker:
    """The token at a position is the prompt's token as many positions before; over and over."""

    def __init__(self, max_num_seqs: int) -> None:
        self._prompt: list[list[int]] = [[]] * max_num_seqs
        self._num_known = [0] * max_num_seqs
        self._num_computed = [0] * max_num_seqs

    def submit(self, step: SchedulerOutput) -> Future[ModelRunnerOutput]:
        """See `app.core.step.Worker`."""
        for request in step.new_requests:
            self._prompt[request.row] = request.token_ids[: request.num_prompt_tokens]
            self._num_known[request.row] = len(request.token_ids)
            self._num_computed[request.row] = request.num_computed_tokens
        tokens: list[list[int]] = []
        for row, count in zip(step.rows, step.num_scheduled_tokens, strict=True):
            position = self._num_computed[row] = self._num_computed[row] + count
            prompt = self._prompt[row]
            tokens.append([prompt[position % len(prompt)]] if position >= self._num_known[row] else [])
        done: Future[ModelRunnerOutput] = Future()
        done.set_result(ModelRunnerOutput(tokens))
        return done

    def compile_grammar(self, grammar: str) -> Future[None]:  # noqa: ARG002
        """See `app.core.step.Worker`."""
        refused: Future[None] = Future()
        refused.set_exception(ValueError("the echo worker knows no grammars"))
        return refused

    def load_adapter(self, slot: int, folder: str) -> Future[None]:
        """See `app.core.step.Worker`: it has no slots."""
        raise NotImplementedError


def build_echo_worker(settings: Settings, path: Path) -> BuiltWorker:
    """A worker with the vocabulary of the model in a folder, and nothing else of it. Raises StartupError."""
    if settings.host_kv_cache:
        raise StartupError("host_kv_cache: the echo worker keeps no KV blocks")
    vocab_size = ModelFolder(path).vocab_size
    limits = initial_limits(settings, settings.max_model_len or _MAX_MODEL_LEN, is_fast=True)
    limits = with_groups(limits, settings, (KVGroup(settings.num_kv_blocks or _NUM_BLOCKS),))
    return BuiltWorker(
        worker=EchoWorker(limits.max_num_seqs),
        limits=limits,
        architecture="Echo",
        model_impl="echo",
        device="none",
        dtype="none",
        vocab_size=vocab_size,
        startup_seconds={},
    )
