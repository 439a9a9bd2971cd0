"""The process in which a sound file is read: `python -m app.speech.read_process BANDS LEAST_FRAMES MAX_SECONDS`.

The file comes on stdin, and its spectrogram goes to stdout: see `app.speech.reading`.
"""

import io
import resource
import signal
import sys

import numpy as np

from ..core.bounded import limit_memory
from .features import HOP, RATE, Floats, log_mel
from .reading import FLAG_OF_SUCCESS, HEADER_BYTES

_MOST_CPU_SECONDS = 60
_BYTES_OF_A_SECOND = 4 * RATE * 8
"""Of memory, for samples and spectrogram with all that is in between."""
_MOST_BYTES = 256 * 2**20
"""The same for a short file, whatever its rate and the number of its channels."""
_MOST_CHANNELS = 8
_RATES = 4000, 192_000
_AT_ONCE = 2**16
"""Frames that are read together."""


class UnreadableError(Exception):
    """Why a file cannot be read, for people."""


def read(data: bytes, max_seconds: int) -> Floats:
    """The samples (n,) at `RATE` of a sound file, its channels mixed. Raises UnreadableError."""
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check(file.samplerate, file.channels)
            stream = soxr.ResampleStream(file.samplerate, RATE, 1, dtype="float32")
            parts, num_samples = [], 0
            while len(block := file.read(_AT_ONCE, dtype="float32", always_2d=True)):
                parts.append(stream.resample_chunk(block.mean(axis=1)))
                num_samples += len(parts[-1])
                if num_samples > max_seconds * RATE:  # whatever the file says of its length
                    raise UnreadableError(f"it is longer than {max_seconds} seconds (max_audio_seconds)")
            parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    except soundfile.LibsndfileError as error:
        raise UnreadableError(f"it is no sound file that can be read: {error.error_string}") from error
    samples: Floats = np.concatenate(parts)
    if not np.isfinite(samples).all():
        raise UnreadableError("it has samples that are no numbers")
    return samples


def _check(rate: int, channels: int) -> None:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise UnreadableError(f"it has {rate} samples a second, and {_RATES[0]} to {_RATES[1]} are supported")
    if channels > _MOST_CHANNELS:
        raise UnreadableError(f"it has {channels} channels, and up to {_MOST_CHANNELS} are supported")


def _limit(max_seconds: int) -> None:
    """Bound what this process may take."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes
    resource.setrlimit(resource.RLIMIT_CPU, (_MOST_CPU_SECONDS, _MOST_CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    limit_memory(_MOST_BYTES + max_seconds * _BYTES_OF_A_SECOND)


def main() -> None:
    """Read one file."""
    num_bands, least_frames, max_seconds = map(int, sys.argv[1:])
    data = sys.stdin.buffer.read()
    _limit(max_seconds)
    try:
        samples = read(data, max_seconds)
    except UnreadableError as error:
        sys.stdout.buffer.write(str(error)[:500].encode())
        return
    if not len(samples):
        sys.stdout.buffer.write(b"it has no samples")
        return
    header = FLAG_OF_SUCCESS + (-(-len(samples) // HOP)).to_bytes(HEADER_BYTES - 1)
    samples = np.pad(samples, (0, max(0, least_frames * HOP - len(samples))))
    samples = np.pad(samples, (0, -len(samples) % HOP))
    sys.stdout.buffer.write(header + log_mel(samples, num_bands).tobytes())


if __name__ == "__main__":
    main()
