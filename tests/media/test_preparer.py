"""The process that prepares images, with a model that needs no time to start, and does what libraries do."""

import asyncio
import io
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.errors import InternalError, QueueFullError
from app.media import preparer
from app.media.preparer import ChatImage, ImagePreparer
from tests.patience import PATIENCE

WORKER = """
import os, types
import numpy as np
from app.media import process

class Widths:
    placeholder, token_id = "<image>", 7

    def prepare(self, image):
        print("a warning", flush=True)
        os.write(1, b"what native code says")
        numbers = np.full(9, image.width / 3, np.float32)
        return types.SimpleNamespace(text=str(image.width), num_tokens=1, arrays={"x": numbers})

def send(said, to, really=process._send):
    if isinstance(said, process.Prepared) and said.text == "13":
        os.write(to, (1).to_bytes(process.FRAME_BYTES) + b"\\xc1")
    else:
        really(said, to)

process._images_of, process._send = lambda folder: Widths(), send
process.main()
"""


def prepared(images: ImagePreparer, width: int) -> "asyncio.Task[ChatImage]":
    file = io.BytesIO()
    Image.new("RGB", (width, 8)).save(file, "PNG")
    return asyncio.create_task(images.prepare(file.getvalue(), "image", 10_000, "", in_halves=width > 15))


@pytest.mark.slow
async def test_answers_are_those_to_the_own_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preparer, "command", lambda _: (sys.executable, "-c", WORKER))
    images = ImagePreparer(tmp_path)
    async with asyncio.timeout(PATIENCE):
        made = await asyncio.gather(*(prepared(images, width) for width in (10, 11, 12)))
        assert [one.text for one in made] == ["10", "11", "12"]
        with pytest.raises(InternalError, match="no answer that can be read"):
            await prepared(images, 13)
        assert (await prepared(images, 14)).text == "14"
        assert images._process is not None
        images._process.send_signal(signal.SIGSTOP)
        slow = prepared(images, 15)
        while not images._turn.locked():
            await asyncio.sleep(0)
        assert (await images.ready()).token_id == 7, "what is known need not wait for an image"
        assert not slow.done()
        images._process.send_signal(signal.SIGCONT)
        assert (await slow).text == "15"
    await images.close()


@pytest.mark.slow
async def test_memory_of_images_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preparer, "command", lambda _: (sys.executable, "-c", WORKER))
    monkeypatch.setattr(preparer, "_MOST_BYTES", 18 + 36 - 1)
    monkeypatch.setattr(preparer, "_MOST_KEPT_BYTES", 1)
    images = ImagePreparer(tmp_path)
    async with asyncio.timeout(PATIENCE):
        made = [await prepared(images, 15), await prepared(images, 16)]
        assert [one.media.arrays["x"].dtype for one in made] == ["float32", "float16"]
        assert np.allclose(made[1].media.arrays["x"].numpy(), 16 / 3, rtol=2**-11)
        with pytest.raises(QueueFullError, match="images of open requests"):
            await prepared(images, 17)
        made.pop()
        assert (await prepared(images, 17)).text == "17"
    await images.close()
