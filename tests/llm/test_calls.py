"""Calls to encoders from a program, in front of a fake engine that counts letters."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from app.api.app import create_app
from app.checkpoint.encoders import EncoderConfig
from app.errors import ContextLengthError, UnsupportedError
from app.llm.calls import Calls
from app.llm.results import Classification, Ranked
from app.settings import Settings
from tests.api.conftest import make_service, write_tokenizer
from tests.api.fake_engine import FakeEngine
from tests.api.test_encoders import count_letters


@asynccontextmanager
async def calls_of(folder: Path, encoder: EncoderConfig) -> AsyncIterator[Calls]:
    engine, settings = FakeEngine(write_tokenizer(folder)), Settings()
    engine.script = count_letters  # type: ignore[assignment]
    app = create_app(settings, lambda _app: nullcontext())  # type: ignore[arg-type, return-value]
    app.state.service = make_service(folder, engine, settings, encoder)
    yield Calls(app)


async def test_vectors_and_scores(tmp_path: Path) -> None:
    done: list[int] = []
    async with calls_of(tmp_path, EncoderConfig("embed", 256)) as calls:
        texts = ["aaabbbb", "b", *["a"] * 200]  # more than one call takes
        vectors = await calls.embed(texts, {}, done.append)
        assert vectors.shape == (202, 2)
        np.testing.assert_allclose(vectors[:3], [[0.6, 0.8], [0, 1], [1, 0]], rtol=1e-6)
        assert len(done) == 202
        assert (await calls.embed([], {}, done.append)).shape == (0, 0)
        assert (await calls.embed(["ab"], {"dimensions": 1}, done.append)).tolist() == [[1.0]]
        assert await calls.score("aaabbbb", ["a", "b"], {}) == pytest.approx([0.6, 0.8])
        assert await calls.rerank("b", ["a", "aaabbbb", "b"], {"top_n": 2}) == [
            Ranked(2, 1.0),
            Ranked(1, pytest.approx(0.8)),
        ]
        with pytest.raises(ContextLengthError) as raised:
            await calls.embed(["a", "b" * 300], {}, done.append)
        assert (raised.value.param, raised.value.status) == ("input[1]", 400)
        with pytest.raises(UnsupportedError):
            await calls.classify(["a"], {}, done.append)
        assert not asyncio.all_tasks() - {asyncio.current_task()}  # what another error has made pointless has ended


async def test_labels(tmp_path: Path) -> None:
    async with calls_of(tmp_path, EncoderConfig("classify", 256, labels=("many a", "many b"))) as calls:
        found = await calls.classify(["aab", "b"], {}, lambda _: None)
    odds = np.exp(1.0)
    assert found[1] == Classification("many b", [pytest.approx(1 / (1 + odds)), pytest.approx(odds / (1 + odds))])
    assert found[0].label == "many a"
