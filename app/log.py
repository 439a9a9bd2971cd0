"""Log lines on stderr, as text for people or as JSON for machines.

A line with fields is written as `log.info("request", extra={"fields": {...}})`. Named arguments of a message, as in
`log.info("%(path)s", {"path": ...})`, become fields of the JSON, too.
"""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from .settings import ServerSettings

_QUIET = ("httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub", "asyncio", "filelock", "urllib3")
"""Libraries of which only warnings and errors are logged."""


def configure_logging(settings: ServerSettings, process: str) -> None:
    """Send all log lines of this process to stderr, in the form that the settings name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if settings.log_format == "json" else ConsoleFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a line."""
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _arguments(record: logging.LogRecord) -> dict[str, Any]:
    """The named arguments of a message."""
    return dict(record.args) if isinstance(record.args, Mapping) else {}


class JsonFormatter(logging.Formatter):
    """Writes one JSON object per line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **_arguments(record),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class ConsoleFormatter(logging.Formatter):
    """Writes time, level, process and message, then the fields as name=value."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items() if value is not None)
        line = f"{time} {record.levelname.lower():7} {self._process}: {record.getMessage()}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line
