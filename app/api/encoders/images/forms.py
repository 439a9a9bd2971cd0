"""Requests with images whose bodies are forms: the files themselves, in the place of data URLs."""

from collections import Counter
from typing import Any, TypeVar

from fastapi import Request

from ....errors import InvalidRequestError
from ....settings import RequestLimits
from ...edge.body import read_body, validate
from ...edge.form import Field, Files, is_form, read_form, values_of
from .schema import ImageFields, Uploaded

_FILES = ("image", "images", "file")
Images = TypeVar("Images", bound=ImageFields)


async def read_images(request: Request, model: type[Images], limits: RequestLimits, ignored: set[str] | None) -> Images:
    """See `read_body`. A form's files, and the texts of its field `input`, are the inputs, in their order."""
    if not is_form(request):
        return await read_body(request, model, limits, ignored)
    files = Files(_FILES, limits.max_inputs, limits.max_image_size, "max_image_size")
    values = values_of(model, _with_inputs(await read_form(request, files)))
    if "input" not in values:
        raise InvalidRequestError("image: a file is missing", "image")
    return validate(model, values, ignored, is_form=True)


def _with_inputs(fields: list[Field]) -> list[tuple[str, Any]]:
    """The fields, where files are elements of `input`."""
    numbers = Counter(name for name, _ in fields)
    seen: Counter[str] = Counter()
    found: list[tuple[str, Any]] = []
    for name, value in fields:
        if isinstance(value, str):
            found.append((name, value))
            continue
        path = f"{name}[{seen[name]}]" if numbers[name] > 1 else name
        seen[name] += 1
        found.append(("input", Uploaded(path=path, file=value)))
    return found


def images_form(model: type[ImageFields]) -> dict[str, Any]:
    """The schema of such a form, for OpenAPI."""
    schema = model.model_json_schema()
    properties = {name: of for name, of in schema["properties"].items() if name != "messages"}
    file = {"type": "string", "format": "binary", "description": "a PNG, JPEG, WebP or GIF file"}
    files = {"type": "array", "items": file, "description": "one or several files; all inputs are in the form's order"}
    properties |= dict.fromkeys(_FILES, files)
    properties["input"] = {"type": "array", "items": {"type": "string"}, "description": "texts, or data URLs"}
    return {"type": "object", "properties": properties}
