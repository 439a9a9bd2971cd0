"""Authentication and rate limits: what is checked before any work is done for a request."""

import logging
import math
import re
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import (
    ApiError,
    AuthenticationError,
    InvalidRequestError,
    RateLimitError,
    StartupError,
)
from ...settings import Settings
from ...tenants import EVERYBODY, Tenant, read_tenants
from .errors import error_response
from .inside import TENANT
from .middleware import PAGE_FILES
from .request_log import RequestLog

log = logging.getLogger(__name__)

_DECIMAL = re.compile(rb"\d{1,9}(\.\d{1,9})?")
_OPEN_TO_ALL = {"/health", "/health/live", "/health/ready", "/health/deep"}


class _Bucket:
    """A token bucket: a limit per minute, all of which may be used at once. Use beyond it is a debt."""

    def __init__(self) -> None:
        self._level: float | None = None  # full
        self._at = 0.0

    def level(self, limit: int) -> float:
        """How much may be used now; negative for a debt."""
        now = time.monotonic()
        if self._level is None:
            self._level = limit
        self._level = min(limit, self._level + (now - self._at) * limit / 60)
        self._at = now
        return self._level

    def use(self, limit: int | None, amount: int) -> None:
        """Use an amount, which may exceed the level."""
        if limit is not None:
            self._level = self.level(limit) - amount


@dataclass
class _Usage:
    requests: _Bucket
    tokens: _Bucket


class Admission:
    """The tenants, and how much of their limits they have used in this process."""

    def __init__(self, settings: Settings) -> None:
        """Raises StartupError if the keys cannot be read."""
        self._source = settings.api_keys
        self._tenants = read_tenants(self._source) if self._source is not None else None
        self._public = _OPEN_TO_ALL | ({"/metrics"} if settings.public_metrics else set())
        self._has_page = settings.page
        self._usage: dict[str, _Usage] = {}

    def reload(self) -> None:
        """Read the file of keys again. If it is broken, the keys stay as they were."""
        if self._source is None:
            return
        try:
            self._tenants = read_tenants(self._source)
        except StartupError as error:
            log.error("%s; the keys stay as they were", error)
        else:
            log.info("the API keys were read again")

    def tenant_of(self, scope: Scope) -> Tenant:
        """The tenant whose key a request carries. Raises AuthenticationError if it has none and the path needs one."""
        if TENANT in scope:
            inside: Tenant = scope[TENANT]
            return inside
        if self._tenants is None or self._is_public(scope["path"]):
            return EVERYBODY
        tenant = None
        for name, value in scope["headers"]:
            scheme, _, credentials = value.partition(b" ")
            if name in (b"x-api-key", b"api-key"):  # of Anthropic's and Azure's clients
                tenant = tenant or self._tenants.find(value)
            elif name == b"authorization" and scheme.lower() == b"bearer":
                tenant = tenant or self._tenants.find(credentials.strip())
        if tenant is None:
            raise AuthenticationError("a valid API key is needed, as Authorization: Bearer KEY or x-api-key: KEY")
        return tenant

    def tenant_named(self, name: str) -> Tenant | None:
        """The tenant of this name, as it is now; None if there is none any more."""
        if self._tenants is None:
            return EVERYBODY if name == EVERYBODY.name else None
        return self._tenants.named(name)

    def _is_public(self, path: str) -> bool:
        """The page itself is: it asks for a key, and calls the API with it."""
        return path in self._public or (self._has_page and (path == "/" or path.startswith(PAGE_FILES)))

    def check_rates(self, entry: RequestLog) -> None:
        """Count a request. Raises RateLimitError if its tenant has reached a limit per minute."""
        self.check_limits(entry)
        self._usage_of(entry.tenant).requests.use(entry.tenant.requests_per_minute, 1)

    def check_limits(self, entry: RequestLog) -> None:
        """Raise RateLimitError if a request's tenant has reached a limit per minute."""
        tenant, usage = entry.tenant, self._usage_of(entry.tenant)
        for what, limit, bucket in (
            ("requests", tenant.requests_per_minute, usage.requests),
            ("tokens", tenant.tokens_per_minute, usage.tokens),
        ):
            if limit is None:
                continue
            missing = 1 - bucket.level(limit)
            if missing > 0:
                error = RateLimitError(f"the limit of {limit} {what} a minute is reached")
                error.retry_after = math.ceil(missing * 60 / limit)
                raise error

    def use_tokens(self, tenant: Tenant, amount: int) -> None:
        """Count prompt or output tokens."""
        if tenant.tokens_per_minute is not None:
            self._usage_of(tenant).tokens.use(tenant.tokens_per_minute, amount)

    def _usage_of(self, tenant: Tenant) -> _Usage:
        return self._usage.setdefault(tenant.name, _Usage(_Bucket(), _Bucket()))


class AuthMiddleware:
    """Checks the key before routing (pure ASGI), so that no path slips through by the way a router reads it."""

    def __init__(self, app: ASGIApp, admission: Admission, request_timeout: float | None) -> None:
        self._app = app
        self._admission = admission
        self._request_timeout = request_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            entry: RequestLog = scope["request_log"]
            try:
                entry.tenant = self._admission.tenant_of(scope)
                entry.deadline = _deadline(scope, self._request_timeout)
            except ApiError as error:
                await error_response(error, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _deadline(scope: Scope, longest: float | None) -> float | None:
    """The deadline of a request (`time.monotonic()`): the server's timeout, or the client's if that is shorter."""
    # A request from inside is of a batch, and waits behind the live traffic, however long that takes.
    timeouts = [] if longest is None or TENANT in scope else [longest]
    for name, value in scope["headers"]:
        if name == b"x-request-timeout":
            timeouts.append(_seconds(value))
    arrived_at: float = scope["request_log"].arrived_at
    return arrived_at + min(timeouts) if timeouts else None


def _seconds(value: bytes) -> float:
    if not _DECIMAL.fullmatch(value) or not (seconds := float(value)):
        raise InvalidRequestError("X-Request-Timeout: a number of seconds above 0, such as 2.5", "X-Request-Timeout")
    return seconds
