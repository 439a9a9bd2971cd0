"""What a program gets of a model."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..api.generation.timings import Timings

FinishedBy = Literal["stop", "length", "tool_calls"]
LogprobsOfTokens = list[dict[int, float]]
"""For each token, first its own id with its logprob, then the ids and logprobs of the most probable ones."""


@dataclass(frozen=True)
class ToolCall:
    """A call that the model wants made."""

    id: str
    name: str
    arguments: str
    """JSON, or the beginning of it, if the text was cut off."""


@dataclass(frozen=True)
class Output:
    """One of the texts that a prompt has got."""

    index: int
    text: str
    token_ids: list[int]
    """With the token that ended the text, which has no text of its own."""
    finish_reason: FinishedBy
    stop_reason: str | int | None
    """The stop string, or stop token, that ended it."""
    logprobs: LogprobsOfTokens | None = None
    reasoning: str = ""
    """Of a chat: what the model wrote before its answer."""
    tool_calls: list[ToolCall] = field(default_factory=list)
    """Of a chat."""


@dataclass(frozen=True)
class Result:
    """What one prompt, or one chat, has got. `text` and the like are those of its first output."""

    prompt: Any
    """As it was given: a text, token ids, or messages."""
    prompt_token_ids: list[int]
    outputs: list[Output]
    timings: Timings
    """Numbers of tokens, milliseconds, and tokens per second, with the names of llama.cpp's server."""

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def logprobs(self) -> LogprobsOfTokens | None:
        return self.outputs[0].logprobs

    @property
    def reasoning(self) -> str:
        return self.outputs[0].reasoning

    @property
    def tool_calls(self) -> list[ToolCall]:
        return self.outputs[0].tool_calls

    @property
    def finish_reason(self) -> FinishedBy:
        return self.outputs[0].finish_reason


@dataclass(frozen=True)
class Piece:
    """What is new of a text."""

    index: int
    """Which of the `n` texts of the prompt."""
    text: str
    token_ids: list[int]
    logprobs: LogprobsOfTokens | None = None
    reasoning: str = ""
    output: Output | None = None
    """The whole text, in its last piece."""
    timings: Timings | None = None
    """In the last piece of all."""


@dataclass(frozen=True)
class Classification:
    """The most probable label of a text, and the probabilities of all."""

    label: str
    probs: list[float]


@dataclass(frozen=True)
class Ranked:
    """A document: its index among those that were given, and how well it answers the query."""

    index: int
    score: float
