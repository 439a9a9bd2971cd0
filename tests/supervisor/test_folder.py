"""The private folder of a service, and who removes it."""

import os
import tempfile
from pathlib import Path

import pytest

from app.supervisor.folder import PrivateFolder


def test_folders_without_an_owner_are_removed_by_the_next_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept, lost = PrivateFolder(), PrivateFolder()
    (lost.path / "engine").touch()
    (tmp_path / "paceline-of-somebody-else").mkdir()
    os.close(lost._lock)  # as the end of its process does
    new = PrivateFolder()
    assert {path.name for path in tmp_path.iterdir()} == {kept.path.name, new.path.name, "paceline-of-somebody-else"}
    assert new.path.stat().st_mode & 0o777 == 0o700
    kept.remove()
    new.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["paceline-of-somebody-else"]
