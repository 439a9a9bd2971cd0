"""Has images prepared for the model, in a process of its own (`app.media.process`)."""

import asyncio
import logging
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from weakref import finalize

import msgspec

from ..core.media import Media
from ..core.own_module import FOLDER, command
from ..errors import InternalError, InvalidRequestError, PayloadTooLargeError, QueueFullError
from .messages import FRAME_BYTES, Image, Prepared, Ready

log = logging.getLogger(__name__)

_MOST_SECONDS = 60
"""For one image, by the clock: on a machine that is busy."""
_START_SECONDS = 120
_MOST_KEPT_BYTES = 64 * 2**20
"""Of prepared images. A client sends those of a chat again with each turn."""
_MOST_BYTES = 4 * 2**30
"""Of prepared images altogether: requests hold theirs until they end, and the engine has as many beside."""
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""It is beside engines that have a thread for each core."""


class ChatImage(NamedTuple):
    """An image that is ready to stand in a chat's prompt."""

    text: str
    """What stands in the place of the placeholder that the chat template writes."""
    media: Media


class ImagePreparer:
    """Starts the process when it is first needed, and again after it has ended. One image is prepared at a time."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of the model."""
        self._folder = folder
        self._process: Process | None = None
        self._ready: Ready | None = None
        """What the process has said of itself, which does not change when there is another."""
        self._turn = asyncio.Lock()
        self._starting: asyncio.Task[None] | None = None
        self._open: dict[bytes, asyncio.Task[Prepared]] = {}
        """Images that are being prepared, by their digests."""
        self._kept: OrderedDict[bytes, ChatImage] = OrderedDict()
        self._kept_bytes = 0
        self._sizes: dict[int, int] = {}
        """Bytes of all prepared images that somebody still has, by their addresses."""

    def warm_up(self) -> None:
        """Start the process in the background, so that the first image need not wait for it."""
        self._starting = asyncio.create_task(self._warm_up())

    async def _warm_up(self) -> None:
        try:
            await self.ready()
        except InternalError as error:
            log.error("images will be refused: %s", error.message)

    async def ready(self) -> Ready:
        """What the process says of itself, once it is there. Raises InternalError if it does not start."""
        if self._ready is None:
            async with self._turn:
                await self._running()
        assert self._ready is not None
        return self._ready

    async def prepare(self, data: bytes, path: str, most_pixels: int, salt: str, in_halves: bool = False) -> ChatImage:
        """Prepare the image in a file.

        salt: images of equal salt may be recognized. in_halves: see `Image`; the same for all. Raises
        InvalidRequestError or PayloadTooLargeError that names `path` for one that cannot be read, QueueFullError if
        requests have too many bytes of images, and InternalError if the process does not start.
        """
        digest = await asyncio.to_thread(_digest, data, salt)  # ten milliseconds for a large file
        if (kept := self._kept.get(digest)) is not None:
            self._kept.move_to_end(digest)
            return kept
        if digest not in self._open:
            self._open[digest] = task = asyncio.create_task(self._prepare(Image(data, most_pixels, in_halves)))
            task.add_done_callback(lambda _: self._open.pop(digest, None))
        made = await asyncio.shield(self._open[digest])  # others may wait for it, too
        if made.is_too_large:
            raise PayloadTooLargeError(f"{path}: {made.error} (max_image_pixels)", path)
        if made.error:
            raise InvalidRequestError(f"{path}: the image cannot be read: {made.error}", path)
        if (kept := self._kept.get(digest)) is not None:  # by another who has waited for it
            return kept
        return self._keep(ChatImage(made.text, Media(digest, made.arrays, made.num_tokens)))

    def _keep(self, image: ChatImage) -> ChatImage:
        self._sizes[id(image.media)] = _size(image)
        finalize(image.media, self._sizes.pop, id(image.media))
        self._kept_bytes += _size(image)
        self._kept[image.media.digest] = image
        while self._kept_bytes > _MOST_KEPT_BYTES:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= _size(dropped)
        return image

    async def close(self) -> None:
        """End the process."""
        tasks = [*self._open.values(), *([self._starting] if self._starting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._process is not None:
            await self._end(self._process)

    async def _prepare(self, image: Image) -> Prepared:
        async with self._turn:
            if sum(list(self._sizes.values())) > _MOST_BYTES:
                raise QueueFullError("images of open requests take up too much memory; try again later")
            process = await self._running()
            assert process.stdin is not None
            try:
                async with asyncio.timeout(_MOST_SECONDS):
                    message = msgspec.msgpack.encode(image)
                    process.stdin.write(len(message).to_bytes(FRAME_BYTES) + message)
                    await process.stdin.drain()
                    return msgspec.msgpack.decode(await _receive(process), type=Prepared)
            except msgspec.DecodeError:  # and the next answer might be that to another image
                await self._end(process)
                raise InternalError("the process that prepares images has given no answer that can be read") from None
            except (TimeoutError, EOFError, ConnectionError):
                code = await self._end(process)
                log.warning("an image of %d bytes ended the process that prepares images (%d)", len(image.data), code)
                is_slow = code in (-signal.SIGPROF, -signal.SIGKILL)
                return Prepared(error=f"it takes too {'long' if is_slow else 'much memory'}")

    async def _running(self) -> Process:
        """The process: a new one if there is none, or if it has been killed."""
        if self._process is None or self._process.returncode is not None:
            return await self._start()
        return self._process

    async def _start(self) -> Process:
        process = self._process = await asyncio.create_subprocess_exec(
            *command("media.process"), str(self._folder.absolute()),
            cwd=FOLDER, env={**os.environ, **_ONE_THREAD}, stdin=PIPE, stdout=PIPE, stderr=DEVNULL,
        )  # fmt: skip
        said, fault = Ready(), "it does not start"
        try:
            async with asyncio.timeout(_START_SECONDS):
                said = msgspec.msgpack.decode(await _receive(process), type=Ready)
                fault = said.error
        except (TimeoutError, EOFError, msgspec.DecodeError):
            pass
        if fault:
            await self._end(process)
            raise InternalError(f"the process that prepares images cannot: {fault}")
        self._ready = said
        return process

    async def _end(self, process: Process) -> int:
        """Kill the process unless it has ended, and return its exit code: negative if a signal has ended it."""
        self._process = None
        assert process.stdin is not None
        process.stdin.close()
        with suppress(TimeoutError):  # one that died has closed its end, but may not have been waited for yet
            async with asyncio.timeout(1):
                return await process.wait()
        with suppress(ProcessLookupError):
            process.kill()
        return await process.wait()


def _digest(data: bytes, salt: str) -> bytes:
    return sha256(sha256(salt.encode()).digest() + data).digest()


def _size(image: ChatImage) -> int:
    return sum(len(array.data) for array in image.media.arrays.values())


async def _receive(process: Process) -> bytes:
    assert process.stdout is not None
    length = int.from_bytes(await process.stdout.readexactly(FRAME_BYTES))
    return await process.stdout.readexactly(length)
