"""The process in which images are decoded and prepared: `python -m app.media.process MODEL_FOLDER`.

It answers as `app.core.answering` says, because decoders are native code that reads strangers' files.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.folder import ModelFolder
from ..checkpoint.image_models import ImageModelConfig
from ..core.answering import send, serve, take_stdout
from ..core.media import Array
from ..errors import quoted, text_of
from .decode import ImageError, TooManyPixelsError, decode
from .messages import Image, Prepared, Ready

if TYPE_CHECKING:  # they are imported once stdout is out of reach
    from .processors import ChatImages, ImagePreparer

_MOST_CPU_SECONDS = 10
"""Processor time for one image."""
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
        return Prepared(error=f"the model's processor refuses it: {text_of(error)}")
    arrays = {name: Array.of(_halved(array) if asked.in_halves else array) for name, array in made.arrays.items()}
    return Prepared(text=made.text, num_tokens=made.num_tokens, arrays=arrays)


def _halved(array: NDArray[Any]) -> NDArray[Any]:
    """Pixels are normalized, so float16 has room for them, and no fewer digits than the other type of 16 bits."""
    return array.astype(np.float16) if array.dtype.kind == "f" else array


def images_of(folder: Path) -> "ChatImages | ImagePreparer":
    """What reads images for the model in a folder: for a chat, or for a model of images."""
    from .processors import ChatImages, ImagePreparer

    predicts = isinstance(ModelFolder(folder).predictor, ImageModelConfig)
    return ImagePreparer(folder) if predicts else ChatImages(folder)


def main() -> None:
    """Prepare images until stdin is closed."""
    answers = take_stdout()
    try:
        images = images_of(Path(sys.argv[1]))
    except Exception as error:
        send(Ready(error=quoted(error)), answers)
        return
    ready = Ready(placeholder=images.placeholder, token_id=images.token_id)
    limits = {"most_cpu_seconds": _MOST_CPU_SECONDS, "most_bytes": _MOST_BYTES}
    serve(ready, Image, partial(prepare, images), answers, **limits)


if __name__ == "__main__":
    main()
