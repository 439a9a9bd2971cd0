"""Has images prepared for the model, in a process of its own (`app.media.process`)."""

import asyncio
import logging
from collections import OrderedDict
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from weakref import finalize

from ..core.media import Media
from ..core.own_module import command
from ..core.side_process import EndedError, SideProcess
from ..errors import InternalError, InvalidRequestError, PayloadTooLargeError, QueueFullError
from .messages import Image, Prepared, Ready

log = logging.getLogger(__name__)

MOST_KEPT_BYTES = 64 * 2**20
"""Of prepared images. A client sends those of a chat again with each turn."""
MOST_BYTES = 4 * 2**30
"""Of prepared images altogether: requests hold theirs until they end, and the engine has as many beside."""
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""It is beside engines that have a thread for each core."""


class ChatImage(NamedTuple):
    """An image that is ready to stand in a chat's prompt."""

    text: str
    """What stands in the place of the placeholder that the chat template writes."""
    media: Media


class ImagePreparer:
    """Keeps what was prepared for as long as there is room. One image is prepared at a time."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of the model."""
        program = (*command("media.process"), str(folder.absolute()))
        self._process = SideProcess("the process that prepares images", program, Ready, Prepared, **_ONE_THREAD)
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
            await self._process.ready()
        except InternalError as error:
            log.error("images will be refused: %s", error.message)

    async def ready(self) -> Ready:
        """What the process says of itself, once it is there. Raises InternalError if it does not start."""
        return await self._process.ready()

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
        while self._kept_bytes > MOST_KEPT_BYTES:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= _size(dropped)
        return image

    async def close(self) -> None:
        """End the process."""
        tasks = [*self._open.values(), *([self._starting] if self._starting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._process.close()

    async def _prepare(self, image: Image) -> Prepared:
        async with self._turn:
            if sum(list(self._sizes.values())) > MOST_BYTES:
                raise QueueFullError("images of open requests take up too much memory; try again later")
            try:
                return await self._process.ask(image)
            except EndedError as end:
                log.warning(
                    "an image of %d bytes ended the process that prepares images (%d)", len(image.data), end.code
                )
                return Prepared(error=f"it takes too {'long' if end.was_slow else 'much memory'}")


def _digest(data: bytes, salt: str) -> bytes:
    return sha256(sha256(salt.encode()).digest() + data).digest()


def _size(image: ChatImage) -> int:
    return sum(len(array.data) for array in image.media.arrays.values())
