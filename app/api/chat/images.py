"""Images in chats: from the parts of messages to places among the prompt's tokens."""

import asyncio
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ...core.media import Placed, Run
from ...errors import ContextLengthError, InvalidRequestError, UnsupportedError
from ...media.images import read_data_url
from ...media.preparer import ChatImage, ImagePreparer
from ...text.control_tokens import Segments
from ..edge.request_log import RequestLog
from ..generation.choices import check_count
from ..generation.prompts import in_thread
from ..service import Service
from .message import ContentPart

_OPEN, _CLOSE = "\U000f0002", "\U000f0003"
"""Private-use characters, as `app.text.control_tokens` has others."""


@dataclass(frozen=True)
class ImagePart:
    """An image of a chat, and what the API that was called says of it."""

    part: ContentPart
    path: str
    """Of the field with the image."""
    kind: str
    """The part's type there."""

    @property
    def holder(self) -> str:
        """The path of the part."""
        return self.path.rpartition(".")[0]


async def prepare_images(service: Service, parts: Sequence[ImagePart], entry: RequestLog | None) -> list[ChatImage]:
    """Each image as the model reads it. Raises InvalidRequestError or PayloadTooLargeError that names the field, and
    DeadlineError.

    `entry`: of the request, if it has come over HTTP. An image that another tenant sends is not recognized.
    """
    if not parts:
        return []
    first = parts[0]
    if service.images is None or not service.ready().reads_images:
        why = "images are off" if service.images is not None else "this model reads none"
        raise UnsupportedError(f"{first.holder}: content of type {first.kind!r} is not supported: {why}", first.holder)
    limits = service.settings.request_limits
    check_count("images", len(parts), limits.max_images)
    urls = [one.part.image_url.url if one.part.image_url else None for one in parts]
    for one, url in zip(parts, urls, strict=True):
        if url is None:
            raise InvalidRequestError(f"{one.path}: Field required", one.path)

    def read() -> list[bytes]:
        return [read_data_url(url or "", one.path, limits.max_image_size) for one, url in zip(parts, urls, strict=True)]

    files = await in_thread(read, sum(len(url or "") for url in urls))
    left = None if entry is None or entry.deadline is None else entry.deadline - time.monotonic()
    try:
        async with asyncio.timeout(left):  # they may have to wait for those of others
            return await _prepare(service, service.images, files, parts, entry.tenant.cache_salt if entry else "")
    except TimeoutError:
        assert entry is not None
        raise service.expired(entry) from None


async def _prepare(
    service: Service, preparer: ImagePreparer, files: Sequence[bytes], parts: Sequence[ImagePart], salt: str
) -> list[ChatImage]:
    limits = service.settings.request_limits
    images: list[ChatImage] = []
    num_tokens, most = 0, service.ready().max_model_len
    in_halves = service.ready().dtype in ("float16", "bfloat16")
    for file, one in zip(files, parts, strict=True):
        images.append(await preparer.prepare(file, one.path, limits.max_image_pixels, salt, in_halves))
        num_tokens += images[-1].media.num_tokens
        if num_tokens > most:  # before others are prepared, each of which may take a hundred megabytes
            raise ContextLengthError(
                f"This model's maximum context length is {most} tokens. However, images have {num_tokens} tokens up "
                "to this one. Send fewer, or smaller ones.",
                one.path,
            )
    return images


class Gallery:
    """The images of one chat, and where its template shows them.

    A template writes a placeholder for an image where it reads parts, and may gather images in front of texts. Where it
    reads texts alone, an image is a mark in the text, in whose place the placeholder is written afterwards. So images
    without a mark in the rendered text are those that the template has shown, in order.
    """

    def __init__(self, images: Sequence[ChatImage], placeholder: str, token_id: int) -> None:
        self.placeholder = placeholder
        """What the template writes for an image, or a part of that."""
        self._images, self._token_id = images, token_id
        nonce = secrets.randbits(64)
        self.marks = [f"{_OPEN}{nonce}:{index}{_CLOSE}" for index in range(len(images))]
        """The texts that stand for images."""
        self._mark = re.compile(f"{_OPEN}{nonce}:([0-9]+){_CLOSE}")

    def show(self, segments: Segments, around: str) -> tuple[Segments, list[int]]:
        """A rendered chat with places for the images, and the order in which they stand there.

        around: what the template writes for an image, the placeholder included. Raises InvalidRequestError if the
        template does not show all of them.
        """
        marked = {int(index) for text, _ in segments for index in self._mark.findall(text)}
        shown = iter([index for index in range(len(self._images)) if index not in marked])
        order: list[int] = []

        def place(match: re.Match[str]) -> str:
            index = int(match[1]) if match[1] else next(shown, None)
            if index is None:
                raise InvalidRequestError("messages: the chat template shows more images than there are", "messages")
            order.append(index)
            own = self._images[index].text
            return around.replace(self.placeholder, own, 1) if match[1] else own

        places = re.compile(f"{self._mark.pattern}|{re.escape(self.placeholder)}")
        told = [(places.sub(place, text) if is_trusted else text, is_trusted) for text, is_trusted in segments]
        if len(order) < len(self._images):
            raise InvalidRequestError("messages: the chat template does not show all images", "messages")
        return told, order

    def placed(self, token_ids: Sequence[int], order: Sequence[int]) -> list[Placed]:
        """Where the images' places are among the prompt's tokens."""
        places = [at for at, token in enumerate(token_ids) if token == self._token_id]
        media = [self._images[index].media for index in order]
        if len(places) != sum(one.num_tokens for one in media):
            raise InvalidRequestError("messages: the text has a token that stands for images", "messages")
        found = []
        for one in media:
            own, places = places[: one.num_tokens], places[one.num_tokens :]
            found.append(Placed(_runs(own), one))
        return found


def _runs(places: Sequence[int]) -> list[Run]:
    """Ascending numbers as runs of successive ones."""
    groups = groupby(enumerate(places), lambda pair: pair[1] - pair[0])
    pieces = [list(group) for _, group in groups]
    return [Run(piece[0][1], len(piece), piece[0][0]) for piece in pieces]
