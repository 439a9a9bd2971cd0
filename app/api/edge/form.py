"""Forms (multipart/form-data, RFC 7578): files and texts, as programs without JSON send them."""

import sys
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, get_args, get_origin

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ...errors import InvalidRequestError, PayloadTooLargeError
from .body import RequestBody

FORM = "multipart/form-data"
_MOST_TEXTS = 1024
_MOST_TEXT_BYTES = 2**16
_LONGEST_NAME = 80
"""Characters of a field's name that errors tell."""
Field = tuple[str, str | bytes]
"""A field's name, without the [] that some programs write behind it, and its text or file."""


class Files(NamedTuple):
    """The files that a form may have."""

    fields: Collection[str]
    """The names of their fields."""
    most: int
    most_bytes: int = sys.maxsize
    """Of each; whatever it is, the body as a whole is bounded."""
    setting: str = "max_body_size"
    """The name of that limit."""


def is_form(request: Request) -> bool:
    """Whether the request's body says that it is a form."""
    return is_form_type(request.headers.get("content-type", ""))


def is_form_type(content_type: str) -> bool:
    """Whether a Content-Type, with or without parameters, is that of a form."""
    return content_type.partition(";")[0].strip().lower() == FORM


async def read_form(request: Request, files: Files) -> list[Field]:
    """The fields of a form, in their order. A file that is too large is not read to its end.

    Raises PayloadTooLargeError for such a file, InvalidRequestError for other faults, such as a text in a file's place.
    """
    form = await _parsed(_Parser(request, files))
    fields: list[Field] = []
    for name, value in ((_plain(name), value) for name, value in form.multi_items()):
        if isinstance(value, str) and name in files.fields:
            raise InvalidRequestError(f"{name}: this is a text, and no file: curl sends one with -F {name}=@FILE", name)
        fields.append((name, await value.read() if isinstance(value, UploadFile) else value))
    return fields


@asynccontextmanager
async def open_form(request: Request, files: Files, most_texts: int) -> AsyncIterator[FormData]:
    """A form whose files may be too large for the memory: they are on a disk, until the block ends.

    Raises InvalidRequestError.
    """
    form = await _parsed(_SpoolingParser(request, files, most_texts))
    try:
        yield form
    finally:
        await form.close()


async def _parsed(parser: "_Parser") -> FormData:
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise InvalidRequestError(f"the form cannot be read: {error.message}") from None
    except ValueError as error:  # of the name of a charset, which Python looks up
        raise InvalidRequestError(f"the form cannot be read: {error}") from None


def values_of(model: type[RequestBody], fields: Sequence[Field]) -> dict[str, Any]:
    """A form's fields as a JSON object with texts for numbers, for `validate`: lists are what the model says are some.

    Raises InvalidRequestError for another field that comes twice.
    """
    values: dict[str, Any] = {}
    for name, value in fields:
        if _is_list(model, name):
            values.setdefault(name, []).append(value)
        elif name in values:
            raise InvalidRequestError(f"{name}: is given more than once", name)
        else:
            values[name] = value
    return values


def _is_list(model: type[RequestBody], name: str) -> bool:
    field = model.model_fields.get(name)
    kinds = () if field is None else (field.annotation, *get_args(field.annotation))
    return any(get_origin(kind) is list for kind in kinds)


def _plain(name: str) -> str:
    return name.removesuffix("[]")


class _Parser(MultiPartParser):
    """Starlette's parser, which looks at each field while it comes: Starlette's own limits do not say which it was."""

    spool_max_size = sys.maxsize  # nothing is written to a disk: the body is bounded, and is in memory in any case

    def __init__(self, request: Request, files: Files, most_texts: int = _MOST_TEXTS) -> None:
        limits = dict.fromkeys(("max_files", "max_fields", "max_part_size"), sys.maxsize)
        super().__init__(request.headers, request.stream(), **limits)
        self._files, self._most_texts = files, most_texts
        self._name, self._num_bytes = "", 0
        """Of the field that is coming."""

    def on_part_begin(self) -> None:
        # Whatever the form says (RFC 7578, 5.1.2): among Python's codecs are some that take a minute for a body.
        self._charset = "utf-8"
        super().on_part_begin()

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        self._name, self._num_bytes = _plain(self._current_part.field_name)[:_LONGEST_NAME], 0
        name, most = self._name, self._files.most
        if self._current_part.file is None:
            if self._current_fields > self._most_texts:
                raise InvalidRequestError(f"{name}: a form may have at most {self._most_texts} texts", name)
        elif name not in self._files.fields:
            fields = " or ".join(self._files.fields)
            raise InvalidRequestError(f"{name}: a file has to be the field {fields}", name)
        elif self._current_files > most:
            raise InvalidRequestError(f"{name}: a form may have at most {most} file{'s' * (most > 1)}", name)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._num_bytes += end - start
        name, files = self._name, self._files
        if self._current_part.file is None:
            if self._num_bytes > _MOST_TEXT_BYTES:
                raise InvalidRequestError(f"{name}: a text in a form may have {_MOST_TEXT_BYTES} bytes", name)
        elif self._num_bytes > files.most_bytes:
            raise PayloadTooLargeError(f"{name}: a file may have {files.most_bytes} bytes ({files.setting})", name)
        super().on_part_data(data, start, end)


class _SpoolingParser(_Parser):
    """For files that are bounded, but not by what the memory has room for."""

    spool_max_size = MultiPartParser.spool_max_size
