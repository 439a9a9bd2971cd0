"""How OpenAI's API writes tokens and their log probabilities."""

from typing import Any

from app.core.sampling import Logprobs
from app.text.tokenizer import Tokenizer

_LOWEST = -9999.0


def finite(logprob: float) -> float:
    """A log probability as JSON can hold it: OpenAI writes -9999 for a probability of zero."""
    return max(logprob, _LOWEST)


def token_name(value: bytes) -> str:
    """A token for people; one that is no whole text by its bytes, so that no two look alike."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in value)


def num_characters(value: bytes) -> int:
    """How many characters of UTF-8 text begin in a token."""
    return sum((byte & 0xC0) != 0x80 for byte in value)


def describe(tokenizer: Tokenizer, token: Logprobs) -> dict[str, Any]:
    """A token of a message with its logprob, and the most probable ones beside it."""
    entries = [
        {
            "token": token_name(tokenizer.token_bytes(id_)),
            "logprob": finite(value),
            "bytes": list(tokenizer.token_bytes(id_)),
        }
        for id_, value in zip(token.token_ids, token.logprobs, strict=True)
    ]
    return {**entries[0], "top_logprobs": entries[1:]}
