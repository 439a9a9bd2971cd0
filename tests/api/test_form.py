"""Forms as strangers send them."""

from tempfile import SpooledTemporaryFile

import pytest
from fastapi import Request
from starlette.datastructures import UploadFile

from app.api.edge.form import Field, Files, open_form, read_form
from app.errors import ApiError, InvalidRequestError


def request_of(charset: str, *parts: tuple[str, str]) -> Request:
    told = [f"--B\r\nContent-Disposition: form-data; {part}\r\n\r\n{content}\r\n" for part, content in parts]
    body = f"{''.join(told)}--B--\r\n".encode()

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", f"multipart/form-data; boundary=B; charset={charset}".encode())]
    return Request({"type": "http", "headers": headers}, receive)


async def read(charset: str, text: str) -> list[Field]:
    return await read_form(request_of(charset, ('name="prompt"', text)), Files(fields=(), most=1))


@pytest.mark.parametrize("charset", ["punycode", "undefined", "latin-1"])
async def test_texts_are_utf8_whatever_a_form_says(charset: str) -> None:
    """Some of Python's codecs raise errors of their own, and punycode takes a minute for the texts of a body."""
    assert await read(charset, "Zürich") == [("prompt", "Zürich")]


async def test_what_is_no_name_of_a_charset_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="the form cannot be read"):
        await read("a\0b", "text")


@pytest.mark.parametrize(
    ("parts", "field", "why"),
    [
        ([('name="a"', "x" * 2**16), ('name="long[]"', "x" * (2**16 + 1))], "long", "may have 65536 bytes"),
        ([(f'name="t{number}"', "x") for number in range(1025)], "t1024", "at most 1024 texts"),
        ([(f'name="{name}"; filename="f"', "x") for name in ("file", "image[]")], "image", "at most 1 file"),
        ([('name="image"; filename="f"', "x" * 10)], "image", r"may have 9 bytes \(its_setting\)"),
        ([('name="other"; filename="f"', "x")], "other", "has to be the field file or image"),
    ],
)
async def test_limits_name_the_field_that_is_beyond_them(parts: list[tuple[str, str]], field: str, why: str) -> None:
    files = Files(fields=("file", "image"), most=1, most_bytes=9, setting="its_setting")
    with pytest.raises(ApiError, match=f"^{field}: .*{why}") as raised:
        await read_form(request_of("utf-8", *parts), files)
    assert raised.value.param == field


async def test_a_large_file_is_on_a_disk_until_it_is_done_with() -> None:
    request = request_of("undefined", ('name="file"; filename="Zürich"', "a" * 2**21))
    async with open_form(request, Files(fields=("file",), most=1), most_texts=1) as form:
        file = form["file"]
        assert isinstance(file, UploadFile)
        assert isinstance(file.file, SpooledTemporaryFile)
        assert (file.filename, file.size, file.file._rolled) == ("Zürich", 2**21, True)  # type: ignore[attr-defined]
    assert file.file.closed
