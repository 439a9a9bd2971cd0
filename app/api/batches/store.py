"""The folder of files and batches. All API workers share it; one of them runs the batches.

Of each tenant there is a folder with FILE_ID.json and FILE_ID.jsonl for a file, and for a batch BATCH_ID.json, its
answers so far in BATCH_ID.output and BATCH_ID.error, and BATCH_ID.cancel once it is to end. A batch's JSON is written
by who creates it, and then by who runs it only.
"""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from ...errors import NotFoundError, PayloadTooLargeError, TenantQueueFullError, UnsupportedError
from ...settings import BatchSettings
from ..edge.answer import encode_json
from .objects import ENDED, BatchObject, FileObject, Purpose

_FILE, _BATCH = "file-", "batch_"
_ID = re.compile(rf"({_FILE}|{_BATCH})[0-9a-f]{{24}}")
_TENANT = "tenant-"
"""In front of a tenant's name, which may be "..". """
_CHUNK = 2**20
_MOST_FILES = 10_000
"""Of a tenant, beside the answers of its batches."""
_MOST_OPEN = 100
"""Batches of a tenant that have not ended."""
Kept = TypeVar("Kept", FileObject, BatchObject)


def new_file_id() -> str:
    """An id that no file has."""
    return _FILE + _unique()


def new_batch_id() -> str:
    """An id that no batch has."""
    return _BATCH + _unique()


def _unique() -> str:
    """In the order of time, for what is created in the same second."""
    return f"{time.time_ns():016x}{secrets.token_hex(4)}"


class TenantFolder:
    """The files and batches of one tenant."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes

    # ------------------------------------------------------------------ files

    def add_file(self, content: BinaryIO, name: str, purpose: Purpose) -> FileObject:
        """Keep a copy. Raises PayloadTooLargeError if the tenant has no room."""
        size = content.seek(0, os.SEEK_END)
        content.seek(0)
        if len(self.files()) >= _MOST_FILES:
            raise PayloadTooLargeError(f"there are {_MOST_FILES} files already; delete some")
        self._check_room(size)
        file_id = new_file_id()
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.content_of(file_id).open("wb") as target:
            shutil.copyfileobj(content, target, _CHUNK)
        return self._keep_file(file_id, name, purpose)

    def adopt(self, path: Path, file_id: str, name: str) -> None:
        """Make a file of answers one of the tenant's files, unless it is one already."""
        if path.exists():
            path.rename(self.content_of(file_id))
        if self.content_of(file_id).exists():
            self._keep_file(file_id, name, "batch_output")

    def _keep_file(self, file_id: str, name: str, purpose: Purpose) -> FileObject:
        size = self.content_of(file_id).stat().st_size
        file = FileObject(id=file_id, bytes=size, created_at=int(time.time()), filename=name, purpose=purpose)
        self._write(file)
        return file

    def file(self, file_id: str, field: str = "file_id") -> FileObject:
        """A file by its id. Raises NotFoundError that names the field."""
        return self._read(file_id, _FILE, FileObject, field)

    def content_of(self, file_id: str) -> Path:
        """Where a file's content is."""
        return self._folder / f"{file_id}.jsonl"

    def files(self) -> list[FileObject]:
        """All files, the oldest first."""
        return self._all(_FILE, FileObject)

    def delete_file(self, file_id: str) -> None:
        """Raises NotFoundError."""
        self.file(file_id)
        (self._folder / f"{file_id}.json").unlink(missing_ok=True)
        self.content_of(file_id).unlink(missing_ok=True)

    def _check_room(self, size: int = 0) -> None:
        """Raise PayloadTooLargeError if there is no room for so many bytes more."""
        kept = sum(entry.stat().st_size for entry in os.scandir(self._folder)) if self._folder.exists() else 0
        if kept + size > self._most_bytes:
            raise PayloadTooLargeError(
                f"the files would be larger than {self._most_bytes} bytes together (max_tenant_bytes); delete some"
            )

    # ------------------------------------------------------------------ batches

    def add_batch(self, batch: BatchObject) -> None:
        """Keep a new batch. Raises PayloadTooLargeError, and TenantQueueFullError if too many are open."""
        self._check_room()
        if sum(one.status not in ENDED for one in self.batches()) >= _MOST_OPEN:
            raise TenantQueueFullError(f"{_MOST_OPEN} batches are open already; wait until one has ended")
        self._write(batch)

    def batch(self, batch_id: str) -> BatchObject:
        """A batch by its id. Raises NotFoundError."""
        return self._as_seen(self._read(batch_id, _BATCH, BatchObject, "batch_id"))

    def batches(self) -> list[BatchObject]:
        """All batches, the oldest first."""
        return [self._as_seen(batch) for batch in self._all(_BATCH, BatchObject)]

    def oldest_open(self, ended: set[str], begun: set[str]) -> BatchObject | None:
        """The oldest batch that has neither ended nor begun.

        `ended`: ids of those that are known to have; others are added.
        """
        found: list[BatchObject] = []
        for path in self._folder.glob(f"{_BATCH}*.json"):
            if path.stem not in ended and path.stem not in begun:
                batch = msgspec.json.decode(path.read_bytes(), type=BatchObject)
                if batch.status in ENDED:
                    ended.add(batch.id)
                else:
                    found.append(batch)
        return min(found, key=lambda batch: (batch.created_at, batch.id), default=None)

    def save(self, batch: BatchObject) -> None:
        """Keep a batch's new state."""
        self._write(batch)

    def cancel(self, batch_id: str) -> None:
        """Have a batch end, whoever runs it."""
        (self._folder / f"{batch_id}.cancel").touch()

    def is_cancelled(self, batch_id: str) -> bool:
        """Whether a batch is to end."""
        return (self._folder / f"{batch_id}.cancel").exists()

    def answers_of(self, batch_id: str) -> tuple[Path, Path]:
        """Where the answers to a batch's requests are, as long as it runs, and where those are that are errors."""
        return self._folder / f"{batch_id}.output", self._folder / f"{batch_id}.error"

    def _as_seen(self, batch: BatchObject) -> BatchObject:
        marker = self._folder / f"{batch.id}.cancel"
        if batch.status not in ENDED and marker.exists():
            batch.status, batch.cancelling_at = "cancelling", int(marker.stat().st_mtime)
        return batch

    # ------------------------------------------------------------------ JSON

    def _read(self, given_id: str, kind: str, model: type[Kept], field: str) -> Kept:
        path = self._folder / f"{given_id}.json"
        if not _ID.fullmatch(given_id) or not given_id.startswith(kind) or not path.exists():
            raise NotFoundError(f"there is no {kind[:-1]} {given_id!r:.80}", field)
        return msgspec.json.decode(path.read_bytes(), type=model)

    def _all(self, kind: str, model: type[Kept]) -> list[Kept]:
        paths = self._folder.glob(f"{kind}*.json")
        found = [msgspec.json.decode(path.read_bytes(), type=model) for path in paths]
        return sorted(found, key=lambda one: (one.created_at, one.id))

    def _write(self, kept: FileObject | BatchObject) -> None:
        """Write all of it or nothing, whatever happens."""
        path = self._folder / f"{kept.id}.json"
        new = path.with_suffix(f".{secrets.token_hex(4)}.new")
        try:
            new.write_bytes(encode_json(kept))
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


class BatchStore:
    """The folders of all tenants."""

    def __init__(self, settings: BatchSettings) -> None:
        self._folder = settings.batch_folder
        self._most_bytes = settings.max_tenant_bytes

    def of(self, tenant: str) -> TenantFolder:
        """The tenant's folder. Raises UnsupportedError if the service keeps no files."""
        if self._folder is None:
            raise UnsupportedError("this server keeps no files and runs no batches (batch_folder)")
        return TenantFolder(self._folder / f"{_TENANT}{tenant}", self._most_bytes)

    def tenants(self) -> Iterator[str]:
        """The names of all tenants that have a folder."""
        assert self._folder is not None
        for path in sorted(self._folder.glob(f"{_TENANT}*")):
            yield path.name.removeprefix(_TENANT)
