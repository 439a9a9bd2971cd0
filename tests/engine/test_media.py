"""An image or a sound goes to the engine once, however many requests have it."""

from pathlib import Path

import msgspec
import numpy as np
import zmq
import zmq.asyncio

from app.core.media import Array, Media, Placed, Run
from app.core.request import FinishReason
from app.core.sampling import SamplingParams
from app.core.wire import (
    AbortCommand,
    DropMediaCommand,
    EngineCommand,
    GenerateCommand,
    HelloCommand,
    KeepMediaCommand,
    RequestOutput,
    StepOutputs,
)
from app.engine.client import AsyncEngine
from app.engine.media import ReceivedMedia
from tests.api.fake_engine import READY, STATS

SIZE = 2**20


class _Listener:
    def record_step(self, stats: object) -> None:
        """Nobody looks at it."""


class Engine:
    """The engine's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket: zmq.asyncio.Socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(address)
        self.media = ReceivedMedia()
        self.num_bytes = 0
        self.worker = b""

    async def read(self) -> EngineCommand:
        self.worker, payload = await self.socket.recv_multipart()
        self.num_bytes += len(payload)
        command = msgspec.msgpack.decode(payload, type=EngineCommand)
        match command:
            case HelloCommand():
                await self.socket.send_multipart((self.worker, msgspec.msgpack.encode(READY)))
            case KeepMediaCommand(media):
                self.media.keep(self.worker, media)
            case DropMediaCommand(digests):
                self.media.drop(self.worker, digests)
            case GenerateCommand():
                return self.media.filled(self.worker, command)
        return command

    async def end(self, request_id: str) -> None:
        output = RequestOutput(request_id=request_id, token_ids=[], finish_reason=FinishReason.STOP)
        await self.socket.send_multipart((self.worker, msgspec.msgpack.encode(StepOutputs([output], STATS))))


def medium(name: str) -> Media:
    return Media(name.encode(), {"pixels": Array.of(np.full(SIZE, ord(name), np.uint8))}, num_tokens=2)


def command(request_id: str, source: str, *images: str) -> GenerateCommand:
    placed = [Placed([Run(2 * at, 2, 0)], medium(name)) for at, name in enumerate(images)]
    return GenerateCommand(
        request_id=request_id, prompt_token_ids=[0] * 9, sampling=SamplingParams(max_tokens=5, seed=0),
        arrived_at=0.0, source=medium(source), placed=placed,
    )  # fmt: skip


async def test_media_are_sent_once_and_kept_while_a_request_has_them(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/engine"
    first, client = Engine(address), AsyncEngine(address, "0", 99, _Listener())
    await client.start()
    await first.read()
    await client.wait_until_ready()
    commands = [command(str(index), "s", "a", "b", "a") for index in range(8)] + [command("other", "t", "b")]
    streams = [client.generate(one) for one in commands]
    received = [one for _ in range(11) if isinstance(one := await first.read(), GenerateCommand)]
    assert received == commands
    first.media.keep(b"another worker", [medium("a")])
    assert first.media.filled(b"another worker", commands[0]).placed[0].media is received[0].placed[0].media
    assert 4 * SIZE < first.num_bytes < 4.1 * SIZE, "what is sent of four media, which nine requests have"

    await first.end("0")
    assert (await anext(streams[0])).finish_reason is FinishReason.STOP
    for index in range(1, 8):
        client.abort(str(index))
    dropped = [await first.read() for _ in range(8)]
    assert dropped == [*(AbortCommand([str(index)]) for index in range(1, 8)), DropMediaCommand([b"a", b"s"])]

    first.socket.close()
    await client.wait_until_lost()
    second = Engine(address)
    await second.read()
    await client.wait_until_ready()
    assert isinstance(await second.read(), KeepMediaCommand)
    again = await second.read()
    assert isinstance(again, GenerateCommand)
    assert (again.source, again.placed) == (commands[-1].source, commands[-1].placed)
    await client.close()
    second.socket.close()
