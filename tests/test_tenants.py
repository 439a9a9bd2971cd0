"""How the tenant of an API key is found."""

import hmac

import pytest

from app import tenants
from app.tenants import Tenant, Tenants, digest_of


def test_all_keys_are_compared_whichever_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(tenants, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    keys = [f"sk-{index}" for index in range(5)]
    known = Tenants([Tenant(name=f"t{index}", keys=(digest_of(key),)) for index, key in enumerate(keys)])
    for key in (*keys, "sk-wrong", ""):
        compared.clear()
        found = known.find(key.encode())
        assert (found.name if found else None) == (f"t{keys.index(key)}" if key in keys else None)
        assert len(compared) == 5
        assert all(len(a) == len(b) == 32 for a, b in compared)  # digests, never keys
