"""What answers are made of. These classes are the API's description only: the bodies are written by hand, for speed."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class AnswerBody(BaseModel):
    """Base of everything that is sent: nothing is in it that is not described."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetails(AnswerBody):
    """What went wrong."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    """The field that is wrong."""
    code: str | None


class ErrorAnswer(AnswerBody):
    """An error as OpenAI's API writes it."""

    error: ErrorDetails


class AnthropicFieldDetails(AnswerBody):
    """What is wrong with a field, for clients that know how to go on."""

    error_code: Literal["thread_unsupported_request"]


class AnthropicErrorDetails(AnswerBody):
    """What went wrong."""

    type: Literal[
        "invalid_request_error",
        "not_found_error",
        "request_too_large",
        "rate_limit_error",
        "api_error",
        "overloaded_error",
    ]
    message: str
    details: AnthropicFieldDetails | None = None


class AnthropicErrorAnswer(AnswerBody):
    """An error as Anthropic's API writes it."""

    type: Literal["error"]
    error: AnthropicErrorDetails
    request_id: str


class TopLogprob(AnswerBody):
    """A token and its logprob."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the text, and the most probable ones in its place."""

    top_logprobs: list[TopLogprob]
