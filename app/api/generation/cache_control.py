"""Anthropic's marks of what had better stay in the prefix cache, as chats have them, too."""

from collections.abc import Iterable
from typing import Any, Literal

from ..edge.body import RequestBody


class CacheControl(RequestBody):
    """A wish to keep the conversation in the prefix cache. All of it is kept, wherever this stands."""

    hints = frozenset(("scope",))
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] = "5m"

    @property
    def seconds(self) -> float:
        """For how long."""
        return {"5m": 300.0, "1h": 3600.0}[self.ttl]


def longest_wish(parts: Iterable[Any]) -> float:
    """The seconds of the longest `cache_control` among these, of which some may have none; else 0."""
    marks = (getattr(part, "cache_control", None) for part in parts)
    return max((mark.seconds for mark in marks if isinstance(mark, CacheControl)), default=0.0)
