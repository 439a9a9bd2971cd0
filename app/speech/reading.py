"""From a sound file to its spectrogram, in a process of its own (`app.speech.read_process`).

Libraries that read sound are native code, and a file may be made to break them. So each file has a process, which may
take so much time and memory and no more; whatever becomes of it, only the request with this file suffers.
"""

import asyncio
import logging
from asyncio.subprocess import DEVNULL, PIPE

import numpy as np

from ..core.own_module import FOLDER, command
from ..errors import InvalidRequestError
from .sound import Sound

log = logging.getLogger(__name__)

_MOST_SECONDS = 120
"""By the clock, for one file."""
FLAG_OF_SUCCESS = b"+"
"""The first byte of an answer; another one begins an error for people."""
HEADER_BYTES = 8
"""Of an answer: this one, and the number of frames that are sound."""


async def read_sound(data: bytes, num_bands: int, least_frames: int, max_seconds: int, param: str) -> Sound:
    """The spectrogram of a sound file, with silence behind it up to `least_frames`.

    When cancelled, it ends the process.
    Raises InvalidRequestError, about the field `param`, for what is no sound that can be read, or too long.
    """
    process = await asyncio.create_subprocess_exec(
        *command("speech.read_process"), str(num_bands), str(least_frames), str(max_seconds),
        cwd=FOLDER, stdin=PIPE, stdout=PIPE, stderr=DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_MOST_SECONDS):
            answer, _ = await process.communicate(data)
    except TimeoutError:
        answer = b""
    finally:
        if process.returncode is None:  # it took too long, or the request has ended
            process.kill()
            await process.wait()
    if not answer:
        log.warning("a file of %d bytes ended the process that reads sound (%s)", len(data), process.returncode)
        raise InvalidRequestError(f"{param}: it takes too much time or memory to read", param)
    if answer[:1] != FLAG_OF_SUCCESS:
        raise InvalidRequestError(f"{param}: {answer.decode(errors='replace')}", param)
    mel = np.frombuffer(answer, np.float32, offset=HEADER_BYTES).reshape(num_bands, -1)
    return await asyncio.to_thread(Sound, mel, int.from_bytes(answer[1:HEADER_BYTES]))  # copies a hundred megabytes
