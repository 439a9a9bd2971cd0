"""Sounds take up memory, so there is a bound on how many are open."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from app.api.audio import route
from app.api.audio.places import SoundPlaces
from app.errors import DeadlineError, QueueFullError


def test_places_run_out_and_each_is_given_back_once() -> None:
    places = SoundPlaces()
    taken = [places.take() for _ in range(32)]
    with pytest.raises(QueueFullError, match="32 sounds are open"):
        places.take()
    taken[0].leave()
    taken[0].leave()
    places.take()
    with pytest.raises(QueueFullError):
        places.take()


def test_a_deadline_holds_while_others_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "speech_of", lambda _: (None, None))
    limits = SimpleNamespace(request_limits=SimpleNamespace(max_audio_seconds=1))
    service: Any = SimpleNamespace(settings=limits, expired=lambda _: DeadlineError("the request's time is over"))
    entry: Any = SimpleNamespace(deadline=0.0)
    form: Any = None

    async def wait_for_a_turn() -> None:
        places = SoundPlaces()
        async with places.reading, places.reading:
            with pytest.raises(DeadlineError):
                await route._read(service, entry, form, places)
            waiting = asyncio.create_task(places.reading.acquire())
            await asyncio.sleep(0)
        assert await waiting  # those that gave up hold no turn

    for _ in range(2):  # each event loop has turns of its own
        asyncio.run(wait_for_a_turn())
