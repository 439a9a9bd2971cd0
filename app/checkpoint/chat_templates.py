"""Where a model's chat templates come from."""

from pathlib import Path
from typing import Any

from ..errors import ModelError
from .folder import ModelFolder


def read_chat_templates(folder: ModelFolder) -> dict[str, str]:
    """The chat templates of a model folder by their names, of which `default` and `tool_use` have a meaning.

    Files that transformers writes today take precedence over those that it wrote earlier.
    """
    templates: dict[str, str] = {}
    for name in ("tokenizer_config.json", "chat_template.json"):
        templates |= _named(folder.path / name, folder.read_object(name).get("chat_template"))
    files = {"default": folder.path / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder.path / "additional_chat_templates").glob("*.jinja"))}
    return templates | {name: _read(file) for name, file in files.items() if file.exists()}


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file} is not UTF-8 text: {error}") from error


def _named(file: Path, value: Any) -> dict[str, str]:
    """Templates by name, from the `chat_template` of a JSON file: a text, an object, or a list of named texts."""
    if value is None:
        return {}
    try:
        named = {"default": value} if isinstance(value, str) else _pairs(value)
    except (KeyError, TypeError) as error:
        raise ModelError(f"{file}: chat_template has no names: {error!r}") from error
    for name, text in named.items():
        if not isinstance(text, str):
            raise ModelError(f"{file}: chat_template {name!r} is not a text")
    return named


def _pairs(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {entry["name"]: entry["template"] for entry in value}
