"""The process that prepares images, with a model that needs no time to start, and does what libraries do."""

import asyncio
import io
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

from app.errors import InternalError
from app.media import preparer
from app.media.preparer import ChatImage, ImagePreparer
from tests.patience import PATIENCE

WORKER = """
import os, types
from app.media import process

class Widths:
    placeholder, token_id = "<image>", 7

    def prepare(self, image):
        print("a warning", flush=True)
        os.write(1, b"what native code says")
        return types.SimpleNamespace(text=str(image.width), num_tokens=1, arrays={})

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
    return asyncio.create_task(images.prepare(file.getvalue(), "image", 10_000, ""))


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
