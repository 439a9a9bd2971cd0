"""Tenants: who may use the service, and how much of it. Read from the file of API keys."""

import hashlib
import hmac
import secrets
from collections import Counter
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .core.request import DEFAULT_TENANT
from .errors import StartupError


class Tenant(BaseModel):
    """A user of the service, with its own keys and limits. A limit that is None does not exist."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Shown in logs and metrics."""
    keys: tuple[str, ...] = Field((), strict=False)
    """SHA-256 digests, in hexadecimal."""
    weight: float = Field(1.0, ge=0.01, le=1000)
    """Share of the service, in proportion to the weights of other tenants."""
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    """Of prompts and answers."""
    max_queued_requests: int | None = Field(None, ge=1)
    max_queued_tokens: int | None = Field(None, ge=1)
    """Prompt tokens of waiting requests from which on the tenant's queue is full."""
    share_prefixes: bool = False
    """Whether to reuse cached prefixes across all tenants that have this set. The time of an answer then reveals
    whether another tenant's prompt was cached."""
    may_operate: bool = False
    """Whether it may change what is served (load and unload adapters), and watch the
    batch with everybody's requests."""

    @property
    def cache_salt(self) -> str:
        """The salt that separates the tenant's blocks in the prefix cache."""
        return "" if self.share_prefixes else f"tenant {self.name}"


EVERYBODY = Tenant(name=DEFAULT_TENANT, share_prefixes=True, may_operate=True)
"""The only tenant of a service without keys."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tenants: list[Tenant] = Field(min_length=1)


class Tenants:
    """All tenants, to be found by their keys."""

    def __init__(self, tenants: list[Tenant]) -> None:
        self._by_digest = [(bytes.fromhex(key), tenant) for tenant in tenants for key in tenant.keys]

    def named(self, name: str) -> Tenant | None:
        """The tenant of this name."""
        return next((tenant for _, tenant in self._by_digest if tenant.name == name), None)

    def find(self, key: bytes) -> Tenant | None:
        """The tenant with this key. Takes the same time for a wrong key as for a right one."""
        digest = hashlib.sha256(key).digest()
        found = None
        for known, tenant in self._by_digest:
            if hmac.compare_digest(known, digest):
                found = tenant
        return found


class FairMemory:
    """Accounts for bounded memory that several owners share. Amounts are bytes, or a count of things.

    An owner may use what others leave free, but cannot push them below equal shares.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: the amount of all owners together."""
        self._limit = limit
        self._kept: Counter[str] = Counter()

    def add(self, owner: str, amount: int) -> None:
        """Add to what an owner keeps; a negative amount takes away."""
        self._kept[owner] += amount
        if not self._kept[owner]:
            del self._kept[owner]

    @property
    def debtors(self) -> list[str]:
        """If too much is kept, the owners that are beyond their shares, the largest first; else none."""
        if self._kept.total() <= self._limit:
            return []
        share = self._limit / len(self._kept)
        return [owner for owner, amount in self._kept.most_common() if amount > share]


def read_tenants(source: str) -> Tenants:
    """Read a file of keys, in YAML or JSON. `source` is its path, or its content, which begins with a brace.

    Raises StartupError, which says what is wrong without repeating any of the content.
    """
    is_content = source.lstrip().startswith("{")
    name = "the value" if is_content else source
    try:
        text = source if is_content else Path(source).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise StartupError(f"api_keys: {name} cannot be read: {type(error).__name__}") from None
    try:
        import yaml  # imported here because most services have no keys

        given = yaml.safe_load(text)
    except Exception:  # of the YAML library, or of what it makes of values such as dates
        raise StartupError(f"api_keys: {name} is not YAML or JSON") from None
    try:
        tenants = _File.model_validate(given).tenants
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        raise StartupError(f"api_keys: {name}: {problems}") from None
    names = [tenant.name for tenant in tenants]
    if len(set(names)) < len(names):
        raise StartupError(f"api_keys: {name}: two tenants have the same name")
    keys = [key for tenant in tenants for key in tenant.keys]
    if not all(len(key) == _DIGEST_LENGTH and set(key) <= set("0123456789abcdef") for key in keys):
        raise StartupError(f"api_keys: {name}: keys are SHA-256 digests, as paceline hash-key prints them")
    if len(set(keys)) < len(keys):
        raise StartupError(f"api_keys: {name}: a key occurs twice")
    return Tenants(tenants)


_DIGEST_LENGTH = 64
_KEY_BYTES = 32


def new_key() -> str:
    """A random key."""
    return f"sk-{secrets.token_urlsafe(_KEY_BYTES)}"


def digest_of(key: str) -> str:
    """The digest of a key for the file of keys. A plain hash is enough, because keys are random and long."""
    return hashlib.sha256(key.encode()).hexdigest()
