"""Wrong settings are reported before anything slow is done."""

from collections.abc import Callable
from pathlib import Path

import pytest

import app.main
import app.supervisor.serve
from app.errors import StartupError
from app.settings import load_settings


@pytest.mark.parametrize("start", [lambda: app.supervisor.serve.serve(load_settings()), app.main.make_app])
def test_broken_keys_are_told_before_the_model_is_looked_for(
    start: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (app.main, app.supervisor.serve):
        monkeypatch.setattr(module, "configure_logging", lambda *_args, **_options: None)
    (tmp_path / "keys.yaml").write_text("tenants: []")
    monkeypatch.setenv("PACELINE_API_KEYS", str(tmp_path / "keys.yaml"))
    monkeypatch.setenv("PACELINE_MODEL", str(tmp_path / "no-model"))
    monkeypatch.setenv("PACELINE_PORT", "0")
    with pytest.raises(StartupError, match="api_keys"):
        start()
