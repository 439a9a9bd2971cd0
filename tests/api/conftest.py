"""A real server with real sockets, in front of a fake engine that follows a script."""

import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import ByteSize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from app.api.app import create_app
from app.api.edge import sse
from app.api.edge.admission import Admission
from app.api.edge.kept_prompts import KeptPrompts
from app.api.edge.resumable import ResumableStreams
from app.api.process import server_config
from app.api.service import Service
from app.checkpoint.byte_alphabet import byte_alphabet
from app.checkpoint.predictors import Predictor
from app.grammar.checker import GrammarChecker
from app.media.preparer import ImagePreparer
from app.metrics import Metrics
from app.settings import RequestLimits, Settings
from app.text.chat_template import ChatTemplate
from app.text.message_format import MessageFormat
from app.text.tokenizer import Tokenizer as PacelineTokenizer
from tests.api.fake_engine import FakeEngine
from tests.patience import PATIENCE

MODEL = "org/tiny"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IM_START, IM_END = 256, 257


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer."""
    return write_tokenizer(tmp_path_factory.mktemp("model"))


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer whose token ids are the bytes of a text, and two control tokens."""
    fast = Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "<|im_end|>"}))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20}))
    return folder


@dataclass(frozen=True)
class Server:
    """A running server, its fake engine and its service."""

    host: str
    port: int
    engine: FakeEngine
    service: Service
    client: httpx.Client

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """POST a JSON body."""
        if body is not None:
            options["json"] = body
        return self.client.post(path, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def complete(self, **body: Any) -> Any:
        """The answer to a completion that has to succeed."""
        answer = self.post("/v1/completions", {"prompt": "Hi", **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def events(self, path: str, body: Any) -> list[Any]:
        """The events of a stream, which must be well-formed; `[DONE]` as it is."""
        answer = self.post(path, {**body, "stream": True})
        assert answer.status_code == 200, answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
        parts = [part for part in answer.text.split("\n\n") if part and not part.startswith(":")]
        assert all(part.startswith("data: ") and "\n" not in part for part in parts)
        data = [part.removeprefix("data: ") for part in parts]
        assert data.count("[DONE]") == 1
        return [json.loads(item) for item in data[:-1]]


def make_service(
    folder: Path,
    engine: FakeEngine,
    settings: Settings,
    encoder: Predictor | None = None,
    images: ImagePreparer | None = None,
) -> Service:
    """The service that routes use, around a fake engine."""
    tokenizer = PacelineTokenizer(folder)
    template = ChatTemplate.from_folder(folder, tokenizer)
    return Service(
        settings=settings,
        model_name=settings.served_model_name or MODEL,
        created=1,
        tokenizer=tokenizer,
        chat_template=template,
        message_format=MessageFormat.choose(settings.tool_parser, settings.reasoning_parser, template),
        grammars=GrammarChecker(folder),
        streams=ResumableStreams.of(settings),
        kept_prompts=KeptPrompts.of(settings),
        predictor=encoder,
        engine=engine,
        metrics=Metrics(),
        admission=Admission(settings),
        images=images,
    )


def start_server(
    folder: Path, encoder: Predictor | None = None, images: ImagePreparer | None = None, **flags: Any
) -> Iterator[Server]:
    """Serve until the caller is done. `encoder`: what the model is, if it does not generate."""
    settings = Settings(**{"served_model_name": MODEL, **flags})
    engine = FakeEngine(folder)
    service = make_service(folder, engine, settings, encoder, images)
    started = threading.Event()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service
        yield
        await service.grammars.close()

    class _Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started.set()

    sock = socket.create_server(("127.0.0.1", 0))
    server = _Server(server_config(create_app(settings, lifespan), settings))
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    assert started.wait(PATIENCE), "uvicorn did not start"
    host, port = sock.getsockname()
    with httpx.Client(base_url=f"http://{host}:{port}", timeout=PATIENCE) as client:
        yield Server(host, port, engine, service, client)
    server.should_exit = True
    thread.join(PATIENCE)
    assert not thread.is_alive(), "uvicorn did not stop"


@pytest.fixture(scope="session")
def _shared_server(model_folder: Path) -> Iterator[Server]:
    limits = RequestLimits(max_grammar_size=ByteSize(1000), max_tools=3, max_n=4, max_logprobs=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "KEEPALIVE_SECONDS", 0.05)
        yield from start_server(model_folder, max_body_size=100_000, request_limits=limits)


@pytest.fixture
def server(_shared_server: Server) -> Server:
    """A server whose engine says "Hello" to everything."""
    _shared_server.engine.reset()
    return _shared_server
