"""The models of a service that has several, and which of them a request is for."""

import asyncio
import re
from collections.abc import Sequence

import msgspec
from fastapi import Request
from starlette.datastructures import State

from ..core.nearest import did_you_mean
from ..errors import InvalidRequestError, NotFoundError, QueueFullError
from .edge.azure import PATH_MODEL
from .edge.form import is_form_type
from .edge.middleware import CHOSEN
from .edge.request_log import RequestLog
from .service import Service

_LONGEST_PAUSE = 600.0
"""Seconds before work that can wait has a model tried again that has failed again and again. Others need not pause so
long: a request of somebody who has mended the model has it tried sooner."""


class _Names(msgspec.Struct):
    """What a body says of the model that it is for. All else is skipped."""

    model: str | None = None
    base_model_name: str | None = None
    lora_name: str | None = None


_BOUNDARY = re.compile(r'boundary="?([^";,]{1,70})', re.IGNORECASE)
_IS_MODEL = re.compile(rb'; name="?model"?(?:\r\n|;|$)')
_MOST_PARTS = 2**16
"""Several times as many as a form may have by default. A body of nothing but boundaries has millions."""
_LONGEST_HEADERS, _LONGEST_NAME = 1024, 1024
"""Bytes."""
_names = msgspec.json.Decoder(_Names, strict=False)


class Services:
    """One `Service` for each model, in the order of the setting: a request that names none is for the first."""

    def __init__(self, services: Sequence[Service]) -> None:
        self.all = list(services)
        self._waiting: dict[str, int] = dict.fromkeys((service.model_name for service in services), 0)
        self._turn = asyncio.Lock()
        """Of models that are woken for work that can wait."""

    def find(self, name: str) -> Service:
        """The model, or the model whose adapter this is. NotFoundError names the one that was probably meant."""
        for service in self.all:
            if name == service.model_name:
                return service
        for service in self.all:
            if service.serves(name) or name in service.settings.lora:
                return service
        names = [known for service in self.all for known in (service.model_name, *service.engine.adapters)]
        served = ", ".join(f"'{known}'" for known in names)
        hint = did_you_mean(name, names)
        error = NotFoundError(f"the model '{name}' does not exist; this server has {served}{hint}", "model")
        error.code = "model_not_found"
        raise error

    async def chosen(self, request: Request) -> Service:
        """The service that a request is for. What is posted is work for the model, which is woken for it."""
        name = request.scope.get(PATH_MODEL)
        if request.method == "POST":  # neither is a body read nor a model loaded for those beyond their limits
            self.all[0].admission.check_limits(request.scope["request_log"])
        if name is None and request.method == "POST":
            name = named(request.url.path, request.headers.get("content-type", ""), await request.body())
        elif name is None:
            name = request.query_params.get("model")
        service: Service = self.all[0] if name is None else self.find(name)
        request.scope[CHOSEN] = service
        if request.method == "POST":
            await self._wake(service, request.scope["request_log"])
        return service

    async def _wake(self, service: Service, entry: RequestLog) -> None:
        """Wait until a model is loaded, if it sleeps. Raises EngineUnavailableError if it cannot be."""
        assert service.lifecycle is not None
        name = service.model_name
        service.lifecycle.want()
        if service.engine.ready is not None:
            return
        if self._waiting[name] >= service.settings.max_queue:
            raise QueueFullError(f"{self._waiting[name]} requests wait for the model to be loaded; try again later")
        self._waiting[name] += 1
        try:
            await service.wait_until_ready(entry)
        finally:
            self._waiting[name] -= 1

    async def wake_for_later(self, service: Service) -> None:
        """Wait until a model is loaded for work that can wait, however often that fails.

        It takes no place from requests that wait for the model, and is not loaded while another one is. One that has
        failed is not even wanted during its pause: at the end of that it would be loaded, whoever's turn it is.
        """
        assert service.lifecycle is not None
        while service.engine.ready is None:
            if (pause := service.lifecycle.seconds_to_pause(_LONGEST_PAUSE)) > 0:
                await service.look(pause)
                continue
            async with self._turn:
                await self._try_to_wake(service)

    async def _try_to_wake(self, service: Service) -> None:
        """Return once the model is loaded or has failed, or if another one is being loaded."""
        assert service.lifecycle is not None
        while service.engine.ready is None and not service.lifecycle.seconds_to_pause(_LONGEST_PAUSE):
            if any(other.state == "loading" for other in self.all if other is not service):
                await service.look()
                return
            service.lifecycle.want()
            await service.look()

    def keep_awake(self) -> None:
        """To be called now and then: models that have requests do not sleep, and one that has failed has none."""
        for service in self.all:
            if not service.engine.has_requests or service.lifecycle is None:
                continue
            if reason := service.lifecycle.reason:
                service.engine.end_all(reason)
            else:
                service.lifecycle.want()


def named(path: str, content_type: str, body: bytes) -> str | None:
    """The model that a body is for, if it names one. A broken body, or name, is refused later, by who reads all of it.

    Raises InvalidRequestError for an adapter that is to be loaded for a model that is not said.
    """
    if is_form_type(content_type):
        return _named_in_form(content_type, body)
    try:
        names = _names.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if path == "/v1/load_lora_adapter" and names.base_model_name is None:
        raise InvalidRequestError("base_model_name: this server has several models", "base_model_name")
    if path == "/v1/unload_lora_adapter":
        return names.lora_name
    return names.base_model_name if path == "/v1/load_lora_adapter" else names.model


def _named_in_form(content_type: str, body: bytes) -> str | None:
    """The field `model` of a form, whose parts are only looked at where they begin: one may be a long file."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        return None
    mark, at = b"--" + boundary[1].encode(), 0
    for _ in range(_MOST_PARTS):
        if (at := body.find(mark, at)) < 0:
            return None
        at += len(mark)
        end = body.find(b"\r\n\r\n", at, at + _LONGEST_HEADERS)
        if end >= 0 and _IS_MODEL.search(body[at:end]):
            value = body[end + 4 : end + 4 + _LONGEST_NAME].partition(b"\r\n")[0]
            return value.decode(errors="replace") or None
    return None


def services_at(state: State) -> Services | None:
    """The models of an application, by its state; None if it has one."""
    services: Services | None = getattr(state, "services", None)
    return services


def services_of(request: Request) -> list[Service]:
    """All models of the service, of which there is one as a rule."""
    services = services_at(request.app.state)
    return [request.app.state.service] if services is None else services.all
