"""A bound on reasoning: where its tokens are used up, it is closed, and the model goes on with the answer."""

from codecs import getincrementaldecoder
from collections.abc import AsyncIterator
from dataclasses import dataclass

from ...core.engine_client import EngineClient
from ...core.request import FinishReason
from ...core.sampling import Logprobs
from ...core.wire import GenerateCommand, Progress, RequestOutput
from ...text.reasoning import ReasoningTags
from ...text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ReasoningBudget:
    """How long a choice may reason."""

    num_tokens: int
    """Tokens between the markers, at least 1. Where they would cut a character, it is completed: up to three more."""
    tags: ReasoningTags
    is_open: bool
    """Whether the prompt ends inside the reasoning. Otherwise the model may begin with it."""


class BoundedReasoning(AsyncIterator[RequestOutput]):
    """The outputs of a request, without the reasoning that is beyond its budget.

    The engine knows of no budget. The request is aborted there, and goes on behind the closing marker like a request
    that has survived its engine. So its text depends on seed and position alone, as every text does.
    """

    def __init__(
        self, engine: EngineClient, command: GenerateCommand, budget: ReasoningBudget, tokenizer: Tokenizer
    ) -> None:
        """Submit the request. Raises what `EngineClient.generate` raises."""
        self._engine = engine
        self._command = command
        self._outputs = engine.generate(command)
        self._progress = Progress()
        self._watch = _Watch(budget, tokenizer)
        self._closing = _tokens_of(budget.tags.close, tokenizer)

    async def __anext__(self) -> RequestOutput:
        output = await anext(self._outputs)
        if self._watch.is_over or output.finish_reason in (FinishReason.ERROR, FinishReason.TIMEOUT):
            return output
        kept = self._watch.num_within(output.token_ids)
        goes_beyond = kept is not None and (output.finish_reason is None or kept < len(output.token_ids))
        if kept is not None and goes_beyond:
            self._close(output, kept)
        self._progress.token_ids += output.token_ids
        self._progress.num_cached_tokens = output.num_cached_tokens
        self._progress.timing = output.timing or self._progress.timing
        if goes_beyond and output.finish_reason is None:
            self._go_on()
        return output

    def _close(self, output: RequestOutput, kept: int) -> None:
        """Stop the request, and let its output end with the closing marker behind the first `kept` tokens."""
        self._engine.abort(self._command.request_id)
        room = self._command.sampling.max_tokens - len(self._progress.token_ids) - kept
        closing = self._closing[:room]
        if output.logprobs:
            output.logprobs = output.logprobs[:kept] + [Logprobs([token], [0.0]) for token in closing]
        output.token_ids = output.token_ids[:kept] + closing
        output.finish_reason = FinishReason.LENGTH if len(closing) == room else None

    def _go_on(self) -> None:
        """Submit the request again, under another name: what the engine still sends of the first is not meant."""
        self._command.request_id += "-answer"
        self._command.progress = self._progress
        self._outputs = self._engine.generate(self._command)


class _Watch:
    """Follows the reasoning, token by token."""

    def __init__(self, budget: ReasoningBudget, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._open, self._close = (tag.encode() for tag in budget.tags)
        self._left = budget.num_tokens
        self._is_open = budget.is_open
        self._text = b""
        """What may be a part of a marker."""
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self.is_over = False
        """Whether the reasoning has ended, or there is none."""

    def num_within(self, token_ids: list[int]) -> int | None:
        """How many of the next tokens are within the budget, if it is used up with them and the reasoning is open."""
        for index, token_id in enumerate(token_ids):
            piece = self._tokenizer.token_bytes(token_id)
            self._text += piece
            self._decoder.decode(piece)
            if not self._is_open:
                self._look_for_the_beginning()
            else:
                self._left -= 1
                is_closed = self._close in self._text
                is_whole_text = not self._decoder.getstate()[0]
                self.is_over = is_closed or (self._left <= 0 and is_whole_text)
                self._text = self._text[1 - len(self._close) :]
                if self.is_over and not is_closed:
                    return index + 1
            if self.is_over:
                break
        return None

    def _look_for_the_beginning(self) -> None:
        begun = self._text.lstrip()
        if begun.startswith(self._open):
            self._is_open, self._text = True, b""
        elif not self._open.startswith(begun):
            self.is_over = True


def _tokens_of(marker: str, tokenizer: Tokenizer) -> list[int]:
    own = tokenizer.added_id(marker)
    return tokenizer.encode(marker, add_special_tokens=False) if own is None else [own]
