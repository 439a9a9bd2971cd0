"""JSON as strangers write it."""

from typing import Any

from pydantic_core import from_json

from app.errors import InvalidRequestError


def parse_json(text: str | bytes, what: str, param: str | None = None) -> Any:
    """The data; InvalidRequestError about `what` if it is no JSON. NaN and half surrogate pairs are none."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        fault = "nested too deeply" if "recursion limit" in str(error) else "not valid JSON"
        raise InvalidRequestError(f"{what} is {fault}: {error}", param) from None
