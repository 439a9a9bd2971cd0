"""How much there may be in a body, before anything is made of it: all streams of the process wait meanwhile."""

from collections.abc import Collection
from typing import Any

from app.errors import InvalidRequestError

_MOST_TOKEN_IDS = 2**22


def check_items(data: dict[str, Any], token_fields: Collection[str], most: int) -> None:
    """Refuse a body with more than `most` elements in its lists and objects, token ids in `token_fields` apart.

    A megabyte of small objects, or of numbers where texts should be, would take seconds to validate.
    """
    num_items = num_token_ids = 0
    for name, value in data.items():
        pending = [value]
        while pending:
            one = pending.pop()
            if not isinstance(one, (dict, list)):
                continue
            if name in token_fields and set(map(type, one)) == {int}:
                num_token_ids += len(one)
                continue
            num_items += len(one)
            if num_items > most:
                raise InvalidRequestError(f"{name}: at most {most} elements in all lists and objects (max_items)", name)
            pending += one.values() if isinstance(one, dict) else one
        if num_token_ids > _MOST_TOKEN_IDS:
            raise InvalidRequestError(f"{name}: at most {_MOST_TOKEN_IDS} token ids in a request", name)
