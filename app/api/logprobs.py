"""How OpenAI's API writes tokens and their log probabilities."""

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
