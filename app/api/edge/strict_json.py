"""Strict parsing of JSON from clients, and a bound on its number of elements."""

from collections.abc import Collection
from typing import Any

from pydantic_core import from_json

from ...errors import InvalidRequestError

_MOST_TOKEN_IDS = 2**22


def parse_json(text: str | bytes, what: str, param: str | None = None) -> Any:
    """Parse JSON, without NaN and lone surrogates. Raises InvalidRequestError that names `what`."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        fault = "nested too deeply" if "recursion limit" in str(error) else "not valid JSON"
        raise InvalidRequestError(f"{what} is {fault}: {error}", param) from None


def check_items(data: dict[str, Any], token_fields: Collection[str], most: int, limit: str = "max_items") -> None:
    """Refuse a body with more than `most` elements in its lists and objects, not counting token ids in `token_fields`.

    `limit`: the name of that number.

    Validating a megabyte of small objects, or of numbers where texts should be, would block the event loop for seconds.
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
                raise InvalidRequestError(f"{name}: at most {most} elements in all lists and objects ({limit})", name)
            pending += one.values() if isinstance(one, dict) else one
        if num_token_ids > _MOST_TOKEN_IDS:
            raise InvalidRequestError(f"{name}: at most {_MOST_TOKEN_IDS} token ids in a request", name)
