"""The reasoning of a choice. Where its budget of tokens is used up, it is closed, and the model goes on to answer."""

from codecs import getincrementaldecoder
from collections.abc import AsyncIterator
from dataclasses import dataclass

from ...core.engine_client import EngineClient
from ...core.request import FinishReason
from ...core.sampling import Logprobs
from ...core.wire import GenerateCommand, Progress, RequestOutput
from ...text.reasoning import ReasoningTags, ReasoningTokens
from ...text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reasoning:
    """How a choice reasons."""

    tags: ReasoningTags
    is_open: bool
    """Whether the prompt ends inside the reasoning. Otherwise the model may begin with it."""
    budget: int | None = None
    """Tokens between the tags, at least 1. Where they would cut a character, it is completed: up to three more. None if
    it may reason as long as it wants."""

    def new_count(self, tokenizer: Tokenizer) -> ReasoningTokens:
        """A count of the tokens of the reasoning."""
        return ReasoningTokens(self.tags, self.is_open, tokenizer.token_bytes)


class BoundedReasoning(AsyncIterator[RequestOutput]):
    """The outputs of a request, without the reasoning that is beyond its budget.

    The engine knows of no budget. The request is aborted there, and goes on behind the closing marker like a request
    that has survived its engine. So its text depends on seed and position alone, as every text does.
    """

    def __init__(
        self, engine: EngineClient, command: GenerateCommand, reasoning: Reasoning, budget: int, tokenizer: Tokenizer
    ) -> None:
        """Submit the request. Raises what `EngineClient.generate` raises."""
        self._engine = engine
        self._command = command
        self._outputs = engine.generate(command)
        self._progress = Progress()
        self._watch = _Watch(reasoning, budget, tokenizer)
        self._closing = _tokens_of(reasoning.tags.close, tokenizer)

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
    """Follows the reasoning up to its end or its budget, token by token."""

    def __init__(self, reasoning: Reasoning, budget: int, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens = reasoning.new_count(tokenizer)
        self._left = budget
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self.is_over = False
        """Whether the reasoning has ended, or there is none."""

    def num_within(self, token_ids: list[int]) -> int | None:
        """How many of the next tokens are within the budget, if it is used up with them and the reasoning is open."""
        for index, token_id in enumerate(token_ids):
            self._left -= self._tokens.is_open
            self._tokens.count([token_id])
            self._decoder.decode(self._tokenizer.token_bytes(token_id))
            if self._tokens.is_over:
                self.is_over = True
                break
            if self._left <= 0 and not self._decoder.getstate()[0]:  # which would be a part of a character
                self.is_over = True
                return index + 1
        return None


def _tokens_of(marker: str, tokenizer: Tokenizer) -> list[int]:
    own = tokenizer.added_id(marker)
    return tokenizer.encode(marker, add_special_tokens=False) if own is None else [own]
