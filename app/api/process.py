"""An API worker: `python -m app.api.process ADDRESS MODEL_FOLDER SOCKET_FD STARTED_AT INDEX [NAME ADDRESS FOLDER ...]`.

Of several models, the last three arguments are there for each, and the first two are those of the first.

The supervisor starts it. It reads its settings from stdin, and shuts down in order when stdin is closed, which means
that the parent is gone (`app.core.parent`).
"""

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import cast

import uvicorn
from fastapi import FastAPI

from ..checkpoint.encoder_decoders import EncoderDecoderConfig
from ..checkpoint.encoders import EncoderConfig
from ..checkpoint.folder import ModelFolder
from ..checkpoint.image_models import ImageModelConfig
from ..checkpoint.predictors import Predictor
from ..core.free_memory import give_back
from ..core.heartbeat import Heartbeat
from ..core.lifecycle import Lifecycle
from ..core.parent import give_up, read_settings, when_parent_ends
from ..core.wire import EngineReady, Task
from ..engine.client import AsyncEngine
from ..errors import EngineUnavailableError, StartupError
from ..grammar.checker import GrammarChecker
from ..log import configure_logging
from ..media.preparer import ImagePreparer
from ..metrics import Metrics
from ..settings import Settings
from ..text.chat_template import ChatTemplate
from ..text.message_format import MessageFormat
from ..text.tokenizer import Tokenizer
from .app import create_app
from .edge.admission import Admission
from .edge.http_protocol import HttpProtocol
from .edge.kept_prompts import KeptPrompts
from .edge.middleware import Drain
from .edge.resumable import ResumableStreams
from .service import Service
from .services import Services, services_at

log = logging.getLogger(__spec__.name)  # since this runs as __main__

_CHAT = '{"temperature": 0, "messages": [{"role": "user", "content": "Name the capital of France."}]}'
_EXAMPLES: dict[Task, tuple[str, str]] = {
    "embed": ("embeddings", '{"input": "What a day!"}'),
    "classify": ("classify", '{"input": "What a day!"}'),
    "token_classify": ("classify", '{"input": "What a day!"}'),
    "score": ("score", '{"text_1": "A cat.", "text_2": "A kitten."}'),
    "forecast": ("forecast", '{"series": [[1, 2, 3, 4, 5, 6, 7, 8]]}'),
}
"""Of predictors: paths and bodies to try them with."""
_IMAGE = (
    '{"input": [{"image": "data:image/png;base64,'
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mM8UaHBgA0wMeAAg1MCAB4nAXgllso1AAAAAElFTkSuQmCC"
    '"}]}'
)

_BACKLOG = 2048
"""How many connections may wait to be accepted."""
_LAST_WORDS_SECONDS = 2
"""Seconds that streams have to send their last event once the drain is over."""


@dataclass(frozen=True)
class TextSide:
    """The part of a model that an API worker loads itself."""

    model_name: str
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    grammars: GrammarChecker
    predictor: Predictor | None
    """None for a model that generates."""
    kept_prompts: KeptPrompts
    encoder_decoder: EncoderDecoderConfig | None
    """How the model reads and writes, if it does so with an encoder and a decoder."""
    images: ImagePreparer | None
    """None for a model that reads no images."""


def load_text_side(settings: Settings, folder: Path) -> TextSide:
    """Read a model folder, and open what is to be written to.

    Raises ModelError or StartupError; call it before the server starts, which would log a traceback as well.
    """
    tokenizer = Tokenizer(folder)
    template = ChatTemplate.from_folder(folder, tokenizer)
    name = settings.served_model_name or _default_name(settings)
    if name in settings.lora:
        raise StartupError(f"lora: the served model has the name {name}; the adapter needs another one")
    opened, kept_prompts = ModelFolder(folder, settings.task), KeptPrompts.of(settings)
    described, predictor = opened.encoder_decoder, opened.predictor
    if described is not None and described.num_beams > 1:
        log.info(
            "its makers search with %d beams (generation_config.json); Paceline does not search, and takes the most "
            "probable token where temperature is 0",
            described.num_beams,
        )
    if isinstance(predictor, EncoderConfig) and predictor.task == "judge" and not template.source:
        raise StartupError("task: score takes a model with a chat template, which writes the pairs of texts")
    sees = opened.reads_images or isinstance(predictor, ImageModelConfig)
    images = ImagePreparer(folder) if sees else None
    grammars = GrammarChecker(folder)
    return TextSide(name, tokenizer, template, grammars, predictor, kept_prompts, described, images)


@asynccontextmanager
async def running_service(
    settings: Settings,
    text: TextSide,
    admission: Admission,
    address: str,
    started_at: float,
    name: str = "0",
    is_one_of_several: bool = False,
    beside: Service | None = None,
) -> AsyncIterator[Service]:
    """A service that is connected to an engine, which knows it as `name`. Does not wait until the engine is ready.

    started_at: the same for all processes of the service, in seconds since 1970. beside: of several models, the first
    one's, with which this one shares what is not one model's.
    """
    proposer = "draft" if settings.drafts_by_model else "ngram"
    metrics = Metrics(
        lambda: engine.heartbeat.num_restarts,
        proposer,
        text.model_name if is_one_of_several else None,
        beside.metrics if beside else None,
        lambda: service.state,
    )
    metrics.record_model(text.model_name)
    engine = AsyncEngine(address, name, settings.max_queue, metrics, settings.max_queue_tokens)
    lifecycle = Lifecycle(address) if is_one_of_several else None
    if lifecycle is not None:
        engine.sleeps = lambda: lifecycle.state == "asleep"
    service = Service(
        settings=settings,
        model_name=text.model_name,
        created=int(started_at),
        tokenizer=text.tokenizer,
        chat_template=text.chat_template,
        message_format=MessageFormat.choose(settings.tool_parser, settings.reasoning_parser, text.chat_template),
        grammars=text.grammars,
        streams=beside.streams if beside else ResumableStreams.of(settings),
        kept_prompts=text.kept_prompts,
        predictor=text.predictor,
        engine=engine,
        metrics=metrics,
        admission=admission,
        encoder_decoder=text.encoder_decoder,
        lifecycle=lifecycle,
        images=text.images,
    )
    await engine.start()
    if text.images is not None and settings.images and not is_one_of_several:
        text.images.warm_up()
    try:
        yield service
    finally:
        await engine.close()
        await text.grammars.close()
        if text.images is not None:
            await text.images.close()


def _default_name(settings: Settings) -> str:
    """What clients call the model: a hub id as it is, else the name of the file or folder."""
    if settings.model == "embedded":
        return "SmolLM2-135M-Instruct"
    path = Path(os.path.abspath(Path(settings.model).expanduser()))  # what it is converted to has another name
    return path.stem if path.suffix == ".gguf" else path.name if path.is_dir() else settings.model


def main() -> None:
    """Serve HTTP on an inherited socket."""
    address, folder, fd, started_at, index, *several = sys.argv[1:]
    settings = read_settings(address)
    configure_logging(settings, process="api")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # no keys are loaded yet that could be reloaded
    sock = socket.socket(fileno=int(fd))
    running = AsyncExitStack()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running:
            services: list[Service] = []
            for own, text, at in models:
                beside = services[0] if services else None
                service = running_service(
                    own, text, app.state.admission, at, float(started_at), index, bool(several), beside
                )
                services.append(await running.enter_async_context(service))
            app.state.service = services[0]
            if several:
                app.state.services = Services(services)
            follows = services if index == "0" else []
            if follows and all(service.state == "asleep" for service in services):
                names = ", ".join(service.model_name for service in services)
                log.info("Paceline is ready at %s and loads a model when it is asked for: %s", _url(sock), names)
            greetings = [asyncio.create_task(_follow_engine(service, sock, float(started_at))) for service in follows]
            yield
            for greeting in greetings:
                greeting.cancel()

    try:
        models = _text_sides(settings, several) or [(settings, load_text_side(settings, Path(folder)), address)]
        app = create_app(settings, lifespan)
        give_back()  # what reading the tokenizer took on the way
        _listen(sock)
    except StartupError as error:
        give_up(address, str(error))
    signal.signal(signal.SIGHUP, lambda _number, _frame: app.state.admission.reload())
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # where it hangs, for the supervisor
    server = DrainingServer(app, settings, running.aclose, Heartbeat(address, f"api-{index}"))
    when_parent_ends(server.end)
    server.run([sock])


def _text_sides(settings: Settings, several: list[str]) -> list[tuple[Settings, TextSide, str]]:
    """Of each of several models: its settings, what this process loads of it, and its engine's address."""
    sides = []
    for name, address, folder in zip(*[iter(several)] * 3, strict=True):
        own = settings.of_model(name)
        sides.append((own, load_text_side(own, Path(folder)), address))
    return sides


def _listen(sock: socket.socket) -> None:
    """Accept connections from now on, unless another API worker already does."""
    try:
        sock.listen(_BACKLOG)
    except OSError as error:  # another program took the port after the supervisor had checked it
        raise StartupError(f"cannot listen on port {sock.getsockname()[1]}: {error.strerror}") from error


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """The configuration of uvicorn: our protocol on its fast parser, and none of its lines about starts and ends."""
    return uvicorn.Config(
        app,
        http=cast(type[HttpProtocol], partial(HttpProtocol, settings=settings)),
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keepalive_timeout,
        timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
    )


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which drains on SIGTERM: it still accepts connections, and answers new requests with 503.

    Its event loop sends heartbeats, so that the supervisor sees when it hangs. uvicorn itself would close its socket at
    once, and cut open connections after its grace period. SIGINT is left to the parent, since a terminal sends it to
    all processes.
    """

    def __init__(
        self, app: FastAPI, settings: Settings, let_go: Callable[[], Awaitable[None]], heartbeat: Heartbeat
    ) -> None:
        """`let_go` disconnects from the engine, which ends all open requests with an error. It may be called twice."""
        super().__init__(server_config(app, settings))
        self._state = app.state
        self._drain: Drain = app.state.drain
        self._let_go = let_go
        self._heartbeat = heartbeat

    def end(self) -> None:
        """End now. May be called from any thread."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's
        """See uvicorn."""
        if sig == signal.SIGTERM:
            self._drain.begin()

    async def on_tick(self, counter: int) -> bool:
        """See uvicorn: about ten times a second, whether to end."""
        self._heartbeat.beat()
        if (services := services_at(self._state)) is not None:
            services.keep_awake()
        self._drain.tell()
        self.should_exit = self.should_exit or self._drain.is_over
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn. What is open gets a proper end before its connection is closed."""
        self._drain.begin()
        await self._let_go()
        await super().shutdown(sockets)


async def _follow_engine(service: Service, sock: socket.socket, started_at: float) -> None:
    """Print the banner once the engine is ready, and record the start of every engine that replaces it."""
    with suppress(EngineUnavailableError):  # the engine itself has logged why it does not start
        ready = await service.engine.wait_until_ready()
        total = time.time() - started_at
        if service.settings.load_models == "asked":
            service.metrics.record_startup(ready.startup_seconds)
            log.info("the model %s is loaded", service.model_name)
        else:
            service.metrics.record_startup({**ready.startup_seconds, "total": total})
            _greet(service, ready, _url(sock), total)
        while True:
            await service.engine.wait_until_lost()
            lost_at = time.monotonic()
            ready = await service.engine.wait_until_ready()
            service.metrics.record_startup(ready.startup_seconds)
            if service.lifecycle is None:
                log.warning("the engine is back after %.1f s", time.monotonic() - lost_at)
            else:
                log.info("the model %s is loaded again", service.model_name)


def _url(sock: socket.socket) -> str:
    """The URL of the server on this machine."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


def _greet(service: Service, ready: EngineReady, url: str, seconds: float) -> None:
    if service.settings.log_format == "json":  # every line has to be JSON
        fields = {"model": service.model_name, "num_kv_blocks": ready.num_kv_blocks, "device": ready.device}
        log.info("Paceline is ready at %s after %.1f s", url, seconds, extra={"fields": fields})
    else:
        print(_banner(service, ready, url, seconds), file=sys.stderr, flush=True)


def _banner(service: Service, ready: EngineReady, url: str, seconds: float) -> str:
    phases = ", ".join(f"{name} {duration:.2f}" for name, duration in ready.startup_seconds.items())
    if service.predictor is None:
        memory = f"KV cache   {ready.num_kv_blocks} blocks of {ready.block_size} tokens; up to "
        path, given = "chat/completions", _json(_CHAT)
        if service.encoder_decoder is not None:
            path, given = "completions", _json('{"prompt": "What a day!"}')
            if service.encoder_decoder.series:
                path, given = _EXAMPLES["forecast"][0], _json(_EXAMPLES["forecast"][1])
            if service.encoder_decoder.hears:
                path, given = "audio/transcriptions", "-F file=@talk.wav"
    else:
        memory = "predictor  up to "
        path, body = next(example for task, example in _EXAMPLES.items() if task in ready.tasks)
        if isinstance(service.predictor, ImageModelConfig) and service.predictor.compares is None:
            body = _IMAGE
        given = _json(body)
    page = f"page       {url}/\n  " if service.settings.page else ""
    return f"""
  Paceline is ready at {url} after {seconds:.1f} s ({phases})
  model      {service.model_name} ({ready.architecture}, {ready.model_impl}, {ready.dtype}, {ready.device})
  {memory}{ready.max_model_len} tokens a request
  {page}try        curl {url}/v1/{path} {given}
"""


def _json(body: str) -> str:
    """A body, as curl's arguments."""
    return f"-H 'Content-Type: application/json' \\\n               -d '{body}'"


if __name__ == "__main__":
    main()
