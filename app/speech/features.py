"""The spectrogram that Whisper's encoder reads (Radford et al., 2022, "Robust Speech Recognition via Large-Scale Weak
Supervision", 2.2): powers of 25 ms of sound, every 10 ms, in bands of the mel scale, as logarithms.

Without torch: an API worker's helper makes it.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

RATE = 16_000
"""Samples of a second."""
HOP = 160
"""Samples from one frame to the next."""
FRAMES_OF_A_SECOND = RATE // HOP
_WINDOW = 400
_HIGHEST = 8000.0
"""Hertz of the last band's end."""
_LOUDNESS = 8.0
"""Decades below the loudest place that are told apart."""
_AT_ONCE = 3000
"""Frames that are computed together: each takes some kilobytes."""


def log_mel(samples: Floats, num_bands: int) -> Floats:
    """(num_bands, frames) of samples (n,) at `RATE`: as many frames as the sound has hops."""
    padded = np.pad(samples, _WINDOW // 2, mode="reflect")
    filters = _filters(num_bands)
    parts = [filters @ power.T for power in _powers(padded, len(samples) // HOP)]
    mel = np.log10(np.maximum(np.concatenate(parts, axis=1), 1e-10))
    mel = np.maximum(mel, mel.max() - _LOUDNESS)
    result: Floats = ((mel + 4.0) / 4.0).astype(np.float32)
    return result


def _powers(padded: Floats, num_frames: int) -> Iterator[NDArray[np.float64]]:
    """(frames, frequencies), some frames at a time."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::HOP][:num_frames]
    for start in range(0, num_frames, _AT_ONCE):
        yield np.abs(np.fft.rfft(frames[start : start + _AT_ONCE] * window)) ** 2


def _filters(num_bands: int) -> NDArray[np.float64]:
    """(num_bands, frequencies): triangles of equal area, as Slaney's Auditory Toolbox has them."""
    edges = _hertz(np.linspace(0.0, _mel(_HIGHEST), num_bands + 2))
    frequencies = np.linspace(0.0, RATE / 2, _WINDOW // 2 + 1)
    slopes = edges[:, None] - frequencies
    up, down = -slopes[:-2] / np.diff(edges)[:-1, None], slopes[2:] / np.diff(edges)[1:, None]
    triangles = np.maximum(0.0, np.minimum(up, down))
    result: NDArray[np.float64] = triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return result


_LINEAR = 3.0 / 200.0
"""Mels of a hertz, below 1000 hertz; above, mels are logarithms."""
_STEP = np.log(6.4) / 27.0


def _mel(hertz: float) -> float:
    return float(1000 * _LINEAR + np.log(hertz / 1000) / _STEP)


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    above = np.maximum(mels - 1000 * _LINEAR, 0.0)
    return np.where(above > 0, 1000 * np.exp(_STEP * above), mels / _LINEAR)
