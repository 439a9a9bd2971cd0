"""Sounds take up memory, so there is a bound on how many are open."""

import pytest

from app.api.audio.places import SoundPlaces
from app.errors import QueueFullError


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
