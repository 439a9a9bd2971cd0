"""Turns the engine's tokens into the text of one choice."""

from dataclasses import dataclass, field

from ..core.request import FinishReason
from ..core.sampling import Logprobs
from ..core.wire import RequestOutput
from .detokenizer import make_detokenizer
from .stop import StopChecker
from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class StopConditions:
    """The conditions in the text that end a choice."""

    stop: list[str] = field(default_factory=list)
    """Stop strings, none of them empty."""
    include_stop_str_in_output: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    """Stop tokens that the client named. The engine handles the end-of-sequence tokens."""
    min_tokens: int = 0
    """Stop strings are ignored while fewer tokens than this have been generated."""
    shown: frozenset[int] = frozenset()
    """Special tokens whose text is kept, because a parser looks for it."""


@dataclass(slots=True)
class TextDelta:
    """A piece of a choice. Only the last piece has a `finish_reason`."""

    text: str
    token_ids: list[int]
    logprobs: list[Logprobs]
    prompt_logprobs: list[Logprobs]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string, or the client's stop token, that ended the choice."""
    needs_abort: bool = False
    """The engine does not know yet that the choice has ended."""
    error: str = ""
    blames_request: bool = False
    """Whether the request caused the error, rather than the server."""
    vector: bytes = b""
    """See `RequestOutput`."""


class OutputProcessor:
    """Detokenizes one choice, and finds its stop strings."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: list[int], conditions: StopConditions) -> None:
        self._detokenizer = make_detokenizer(tokenizer, prompt_token_ids, conditions.shown)
        self._conditions = conditions
        self._min_tokens = conditions.min_tokens
        self._checker = StopChecker(conditions.stop, conditions.include_stop_str_in_output)
        self._num_tokens = 0

    def process(self, output: RequestOutput) -> TextDelta:
        """The text that an output adds. Not to be called again after a stop string."""
        delta = TextDelta("", [], [], output.prompt_logprobs, output.finish_reason)
        delta.error, delta.blames_request, delta.vector = output.error, output.blames_request, output.vector
        text = ""
        for index, token_id in enumerate(output.token_ids):
            self._num_tokens += 1
            is_last = index == len(output.token_ids) - 1
            if is_last and output.finish_reason is FinishReason.STOP and not self._shows_stop_token(token_id, delta):
                continue
            piece, hit = self._check(self._detokenizer.feed(token_id))
            text += piece
            if hit is not None:
                delta.token_ids = output.token_ids[: index + 1]
                delta.logprobs = output.logprobs[: index + 1]
                delta.needs_abort = output.finish_reason is None
                delta.finish_reason, delta.stop_reason, delta.text = FinishReason.STOP, hit, text
                return delta
        delta.token_ids, delta.logprobs = output.token_ids, output.logprobs
        if output.finish_reason is not None:
            text += self._finish(delta)
        delta.text = text
        return delta

    def _check(self, piece: str) -> tuple[str, str | None]:
        if self._num_tokens < self._min_tokens:
            return piece, None
        return self._checker.feed(piece)

    def _shows_stop_token(self, token_id: int, delta: TextDelta) -> bool:
        """A stop token has no text of its own, unless the client named it and wants to see it."""
        if token_id not in self._conditions.stop_token_ids:
            return False
        delta.stop_reason = token_id
        return self._conditions.include_stop_str_in_output

    def _finish(self, delta: TextDelta) -> str:
        """The text that was held back. It may complete a stop string, which may contain half a character."""
        text, hit = self._check(self._detokenizer.finish())
        if hit is not None:
            delta.finish_reason, delta.stop_reason = FinishReason.STOP, hit
            return text
        return text + self._checker.flush()
