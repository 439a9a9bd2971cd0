"""Tokens and their log probabilities in the form of OpenAI's API."""

from ...core.sampling import Logprobs
from ...text.tokenizer import Tokenizer
from ..edge.answer import AnswerBody

_LOWEST = -9999.0


class TopLogprob(AnswerBody):
    """A token and its logprob."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(AnswerBody):
    """A token of the text, and the most probable ones in its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


def finite(logprob: float) -> float:
    """A log probability that JSON can hold: OpenAI's API has -9999 for a probability of zero."""
    return max(logprob, _LOWEST)


def token_name(value: bytes) -> str:
    """A token as text. Bytes that are not valid UTF-8 are escaped, so that different tokens differ."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in value)


def num_characters(value: bytes) -> int:
    """How many characters of UTF-8 begin in a token."""
    return sum((byte & 0xC0) != 0x80 for byte in value)


def describe(tokenizer: Tokenizer, token: Logprobs) -> TokenLogprob:
    """A token of a message with its logprob, and the most probable tokens in its place."""
    values = [tokenizer.token_bytes(id_) for id_ in token.token_ids]
    own, *others = [
        TopLogprob(token_name(value), finite(logprob), list(value))
        for value, logprob in zip(values, token.logprobs, strict=True)
    ]
    return TokenLogprob(own.token, own.logprob, own.bytes, others)
