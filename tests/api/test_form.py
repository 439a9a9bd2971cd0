"""Forms as strangers send them."""

import pytest
from fastapi import Request

from app.api.edge.form import Field, Files, read_form
from app.errors import InvalidRequestError


async def read(charset: str, text: str) -> list[Field]:
    body = f'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n{text}\r\n--B--\r\n'.encode()

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", f"multipart/form-data; boundary=B; charset={charset}".encode())]
    return await read_form(Request({"type": "http", "headers": headers}, receive), Files(fields=(), most=1))


@pytest.mark.parametrize("charset", ["punycode", "undefined", "latin-1"])
async def test_texts_are_utf8_whatever_a_form_says(charset: str) -> None:
    """Some of Python's codecs raise errors of their own, and punycode takes a minute for the texts of a body."""
    assert await read(charset, "Zürich") == [("prompt", "Zürich")]


async def test_what_is_no_name_of_a_charset_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="the form cannot be read"):
        await read("a\0b", "text")
