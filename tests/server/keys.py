"""What `--api-keys` takes, for tests."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def digest(key: str) -> str:
    """What of a key may be known."""
    return hashlib.sha256(key.encode()).hexdigest()


def api_keys(tenants: Mapping[str, Mapping[str, Any]]) -> str:
    """The content of a file; `tenants`: names to settings. A tenant's key is its name, unless `keys` are given."""
    entries = [{"name": name, "keys": [digest(name)], **settings} for name, settings in tenants.items()]
    return json.dumps({"tenants": entries})


def write_keys(folder: Path, tenants: Mapping[str, Mapping[str, Any]]) -> Path:
    """The file in a folder, written anew."""
    path = folder / "keys.json"
    path.write_text(api_keys(tenants))
    return path
