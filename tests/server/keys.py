"""API keys and their files, as the setting `api_keys` takes them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def digest(key: str) -> str:
    """The SHA-256 digest of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def api_keys(tenants: Mapping[str, Mapping[str, Any]]) -> str:
    """The content of a file of keys, from names and settings. A tenant's key is its name unless it has `keys`."""
    entries = [{"name": name, "keys": [digest(name)], **settings} for name, settings in tenants.items()]
    return json.dumps({"tenants": entries})


def write_keys(folder: Path, tenants: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write `keys.json` in a folder, and return its path."""
    path = folder / "keys.json"
    path.write_text(api_keys(tenants))
    return path
