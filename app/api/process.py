"""An API worker: `python -m app.api.process ADDRESS MODEL_FOLDER SOCKET_FD STARTED_AT`, started by the supervisor.

It reads its settings as one line of JSON from stdin, and ends in good order when stdin is closed: the parent is gone.
"""

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from app.api.app import create_app
from app.api.http_protocol import HttpProtocol
from app.api.service import Service
from app.core.messages import EngineReady
from app.engine.async_engine import AsyncEngine
from app.errors import EngineUnavailableError
from app.log import configure_logging
from app.metrics import Metrics
from app.settings import Settings
from app.text.chat_template import ChatTemplate
from app.text.tokenizer import Tokenizer

_GRACE_SECONDS = 8
"""What open streams get to end after a signal; less than what the supervisor gives this process."""


@asynccontextmanager
async def running_service(settings: Settings, folder: Path, address: str) -> AsyncIterator[Service]:
    """A service that is connected to an engine. Does not wait until the engine is ready."""
    metrics = Metrics()
    tokenizer = Tokenizer(folder)
    engine = AsyncEngine(address, settings.max_queue, metrics)
    service = Service(
        settings=settings,
        model_name=settings.served_model_name or _default_name(settings, folder),
        created=int(time.time()),
        tokenizer=tokenizer,
        chat_template=ChatTemplate.from_folder(folder, tokenizer),
        engine=engine,
        metrics=metrics,
    )
    await engine.start()
    try:
        yield service
    finally:
        await engine.close()


def _default_name(settings: Settings, folder: Path) -> str:
    """What clients call the model: a hub id as it is, else the name of the file or folder."""
    if settings.model == "embedded":
        return "SmolLM2-135M-Instruct"
    path = Path(settings.model)
    return path.stem if path.suffix == ".gguf" else folder.name if path.is_dir() else settings.model


def main() -> None:
    """Serve HTTP on an inherited socket."""
    address, folder, fd, started_at = sys.argv[1:]
    settings = Settings.model_validate_json(sys.stdin.readline())
    configure_logging(settings, process="api")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sock = socket.socket(fileno=int(fd))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running_service(settings, Path(folder), address) as service:
            app.state.service = service
            greeting = asyncio.create_task(_greet(service, sock, float(started_at)))
            yield
            greeting.cancel()

    uvicorn.Server(server_config(create_app(settings, lifespan), settings)).run([sock])


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """uvicorn as Paceline wants it: its fast parser and loop, and no log of its own."""
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keepalive_timeout,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )


async def _greet(service: Service, sock: socket.socket, started_at: float) -> None:
    """Once the engine is ready, say where and with what."""
    with suppress(EngineUnavailableError):  # the engine itself has said why it does not start
        ready = await service.engine.wait_until_ready()
        total = time.time() - started_at
        service.metrics.record_startup({**ready.startup_seconds, "total": total})
        print(_banner(service, ready, sock, total), file=sys.stderr, flush=True)


def _banner(service: Service, ready: EngineReady, sock: socket.socket, seconds: float) -> str:
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    url = f"http://{host}:{port}"
    phases = ", ".join(f"{name} {duration:.2f}" for name, duration in ready.startup_seconds.items())
    return f"""
  Paceline is ready at {url} after {seconds:.1f} s ({phases})
  model      {service.model_name} ({ready.architecture}, {ready.model_impl}, {ready.dtype}, {ready.device})
  KV cache   {ready.num_kv_blocks} blocks of {ready.block_size} tokens; up to {ready.max_model_len} tokens a request
  try        curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
               -d '{{"messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
"""


def _end_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
