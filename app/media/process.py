"""The process in which images are decoded and prepared: `python -m app.media.process MODEL_FOLDER`.

Images come on stdin and what becomes of them goes to stdout, each behind its length; what libraries print goes to
stderr. The process ends when stdin is closed. Decoders are native code that reads strangers' files, so processor time
and memory are bounded: an image that needs more ends this process, and no other.
"""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..checkpoint.folder import ModelFolder
from ..checkpoint.image_models import ImageModelConfig
from ..core.bounded import limit_memory
from ..core.media import Array
from .decode import ImageError, TooManyPixelsError, decode
from .messages import FRAME_BYTES, MOST_CPU_SECONDS, Image, Prepared, Ready

if TYPE_CHECKING:  # they are imported once stdout is out of reach
    from .processors import ChatImages, ImagePreparer

_MOST_BYTES = 2 * 2**30
"""Memory for one image."""


def prepare(images: "ChatImages | ImagePreparer", asked: Image) -> Prepared:
    """Decode an image, and have the model's own processor read it."""
    try:
        image = decode(asked.data, asked.most_pixels)
        made = images.prepare(image)
    except ImageError as error:
        return Prepared(error=str(error), is_too_large=isinstance(error, TooManyPixelsError))
    except MemoryError:
        return Prepared(error="it takes too much memory")
    except Exception as error:  # a processor may refuse a shape of images, such as one that is too narrow
        return Prepared(error=" ".join(f"the model's processor refuses it: {error}".split())[:300])
    arrays = {name: Array.of(_halved(array) if asked.in_halves else array) for name, array in made.arrays.items()}
    return Prepared(text=made.text, num_tokens=made.num_tokens, arrays=arrays)


def _halved(array: NDArray[Any]) -> NDArray[Any]:
    """Pixels are normalized, so float16 has room for them, and no fewer digits than the other type of 16 bits."""
    return array.astype(np.float16) if array.dtype.kind == "f" else array


def _serve(images: "ChatImages | ImagePreparer", answers: int) -> None:
    while length := os.read(sys.stdin.fileno(), FRAME_BYTES):
        asked = msgspec.msgpack.decode(_read(int.from_bytes(length)), type=Image)
        signal.setitimer(signal.ITIMER_PROF, MOST_CPU_SECONDS)  # whose signal ends the process
        made = prepare(images, asked)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(made, answers)


def _read(length: int) -> bytes:
    message = bytearray()
    while len(message) < length and (piece := os.read(sys.stdin.fileno(), length - len(message))):
        message += piece
    return bytes(message)


def _send(said: Prepared | Ready, to: int) -> None:
    message = msgspec.msgpack.encode(said)
    left = memoryview(len(message).to_bytes(FRAME_BYTES) + message)
    while left:
        left = left[os.write(to, left) :]


def _images_of(folder: Path) -> "ChatImages | ImagePreparer":
    from .processors import ChatImages, ImagePreparer

    predicts = isinstance(ModelFolder(folder).predictor, ImageModelConfig)
    return ImagePreparer(folder) if predicts else ChatImages(folder)


def main() -> None:
    """Prepare images until stdin is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        images = _images_of(Path(sys.argv[1]))
    except Exception as error:
        _send(Ready(error=" ".join(f"{type(error).__name__}: {error}".split())[:300]), answers)
        return
    limit_memory(_MOST_BYTES)
    _send(Ready(images.placeholder, images.token_id), answers)
    _serve(images, answers)


if __name__ == "__main__":
    main()
