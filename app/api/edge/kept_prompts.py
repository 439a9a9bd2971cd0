"""The prompts that the service gets, kept for distillation where the operator wants that."""

import errno
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import StartupError
from ...settings import Settings

log = logging.getLogger(__name__)


class KeptPrompts:
    """Adds prompts to a file that `paceline distill` reads, one JSON object a line. Several processes may share it."""

    def __init__(self, file: Path | None) -> None:
        """None: nothing is kept. Raises StartupError if the file cannot be written. Only its owner may read it."""
        self._file = None
        if file is not None:
            try:
                self._file = file.open("ab", buffering=0)
                file.chmod(0o600)
            except OSError as error:
                raise StartupError(f"keep_prompts: {file} cannot be written: {error.strerror}") from error

    @classmethod
    def of(cls, settings: Settings) -> "KeptPrompts":
        """As the settings want it."""
        return cls(settings.keep_prompts)

    def keep(self, token_ids: Sequence[int]) -> None:
        """Add a prompt. If that fails, no more are kept, and requests go on."""
        if self._file is None:
            return
        line = json.dumps({"token_ids": list(token_ids)}).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):  # at once, so that no other process writes between
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            log.warning("keep_prompts: no more prompts are kept: %s", error.strerror)
            self._file.close()
            self._file = None
