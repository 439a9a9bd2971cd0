"""The messages between an API worker and its process that prepares images (`app.media.process`)."""

import msgspec

from ..core import answering
from ..core.media import Array


class Image(msgspec.Struct, frozen=True):
    """What is to be prepared."""

    data: bytes
    """The file."""
    most_pixels: int
    in_halves: bool = False
    """Whether numbers are wanted in 16 bits, for a model that computes in as many: an image becomes up to 300 MB."""


class Prepared(msgspec.Struct, kw_only=True):
    """What came of it."""

    text: str = ""
    """What stands in the place of the placeholder that the chat template writes."""
    num_tokens: int = 0
    """How many of its tokens stand for places of the image."""
    arrays: dict[str, Array] = {}
    """Arguments of the part of the model that sees."""
    error: str = ""
    """Why the image cannot be read; empty if it can."""
    is_too_large: bool = False


class Ready(answering.Ready):
    """The process's first message."""

    placeholder: str = ""
    """What the chat template writes for an image."""
    token_id: int = 0
    """The token that stands for one place of an image in a prompt."""
