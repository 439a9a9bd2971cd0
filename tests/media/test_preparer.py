"""What becomes of images that are prepared, with a model that needs no time to start."""

import asyncio
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.errors import QueueFullError
from app.media import preparer
from app.media.preparer import ChatImage, ImagePreparer
from tests.patience import PATIENCE

WORKER = """
import types
import numpy as np
from app.media import process

class Widths:
    placeholder, token_id = "<image>", 7

    def prepare(self, image):
        numbers = np.full(9, image.width / 3, np.float32)
        return types.SimpleNamespace(text=str(image.width), num_tokens=1, arrays={"x": numbers})

process.images_of = lambda folder: Widths()
process.main()
"""


def prepared(images: ImagePreparer, width: int) -> "asyncio.Task[ChatImage]":
    file = io.BytesIO()
    Image.new("RGB", (width, 8)).save(file, "PNG")
    return asyncio.create_task(images.prepare(file.getvalue(), "image", 10_000, "", in_halves=width > 15))


@pytest.mark.slow
async def test_memory_of_images_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preparer, "command", lambda _: (sys.executable, "-c", WORKER))
    monkeypatch.setattr(preparer, "MOST_BYTES", 18 + 36 - 1)
    monkeypatch.setattr(preparer, "MOST_KEPT_BYTES", 1)
    images = ImagePreparer(tmp_path)
    async with asyncio.timeout(PATIENCE):
        assert (await images.ready()).token_id == 7
        made = [await prepared(images, 15), await prepared(images, 16)]
        assert [one.text for one in made] == ["15", "16"]
        assert [one.media.arrays["x"].dtype for one in made] == ["float32", "float16"]
        assert np.allclose(made[1].media.arrays["x"].numpy(), 16 / 3, rtol=2**-11)
        with pytest.raises(QueueFullError, match="images of open requests"):
            await prepared(images, 17)
        made.pop()
        assert (await prepared(images, 17)).text == "17"
    await images.close()
