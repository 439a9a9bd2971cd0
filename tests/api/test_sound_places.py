"""Sounds take up memory, so there is a bound on how many are open."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.api.audio import route
from app.api.audio.places import SoundPlace, SoundPlaces
from app.errors import DeadlineError, QueueFullError
from app.speech.sound import Sound

HOUR = 360_000
"""Frames."""


def test_sounds_are_counted_as_long_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.audio.places._MOST_BYTES", HOUR * 4)
    places = SoundPlaces()
    mel = np.arange(HOUR, dtype=np.float32)[None]
    place, other = places.take(b"file"), places.take(bytes(1000))
    place.file, place.sound = b"", Sound(mel, HOUR)
    with pytest.raises(QueueFullError, match="too much memory"):
        places.take(b"")
    window = place.sound.window(HOUR // 2 + 7, 3000)
    np.testing.assert_array_equal(window, mel[:, HOUR // 2 + 7 :][:, :3000])
    assert place.sound.num_bytes == HOUR * 4 / 2 + 3000 * 4, "what lies before the window is given up"
    third = places.take(bytes(HOUR * 4))
    with pytest.raises(QueueFullError):
        places.check_room()
    np.testing.assert_array_equal(place.sound.window(HOUR - 10, 20)[0], [*range(HOUR - 10, HOUR), *[0] * 10])
    for one in (place, place, other, third):
        one.leave()
    places.take(bytes(HOUR * 4 - 1))
    places.take(b"")


def test_a_deadline_holds_while_others_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "speech_of", lambda _: (None, None))
    limits = SimpleNamespace(request_limits=SimpleNamespace(max_audio_seconds=1))
    service: Any = SimpleNamespace(settings=limits, expired=lambda _: DeadlineError("the request's time is over"))
    entry: Any = SimpleNamespace(deadline=0.0)

    async def wait_for_a_turn() -> None:
        places = SoundPlaces()
        async with places.reading, places.reading:
            with pytest.raises(DeadlineError):
                await route._read(service, entry, places, SoundPlace(places, b""))
            waiting = asyncio.create_task(places.reading.acquire())
            await asyncio.sleep(0)
        assert await waiting  # those that gave up hold no turn

    for _ in range(2):  # each event loop has turns of its own
        asyncio.run(wait_for_a_turn())
