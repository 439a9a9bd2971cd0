"""Entities are those that transformers' pipeline finds in the same logits."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import TokenClassificationPipeline

from app.text.entities import entities

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "X"]


@pytest.mark.parametrize("seed", range(5))
def test_entities_are_those_of_the_pipeline(seed: int) -> None:
    rng = np.random.default_rng(seed)
    text = "abcdefgh" * 8
    probs = rng.dirichlet([0.2] * len(LABELS), size=66).astype(np.float32)
    places: list[tuple[int, int] | None] = [None, *((at, at + 1) for at in range(64)), None]
    places[20] = places[40] = None  # special tokens within the text
    pipeline = TokenClassificationPipeline.__new__(TokenClassificationPipeline)
    pipeline.model = SimpleNamespace(config=SimpleNamespace(id2label=dict(enumerate(LABELS))))  # type: ignore[assignment]
    pipeline.tokenizer = _Tokenizer()  # type: ignore[assignment]
    words = [token for token in _tokens(probs, places) if token["start"] >= 0]
    grouped = pipeline.group_entities(pipeline.aggregate(words, "none"))  # type: ignore[arg-type]
    expected = [(one["entity_group"], one["start"], one["end"]) for one in grouped if one["entity_group"] != "O"]
    found = entities(probs, LABELS, places)
    assert [(one.label, one.start, one.end) for one in found] == expected
    np.testing.assert_allclose(
        [one.score for one in found], [one["score"] for one in grouped if one["entity_group"] != "O"], rtol=1e-6
    )
    assert len({text[one.start : one.end] for one in found}) > 1


def _tokens(probs: Any, places: Any) -> list[dict[str, Any]]:
    """What the pipeline gathers of tokens."""
    return [
        {"word": "w", "scores": scores, "start": -1 if place is None else place[0],
         "end": -1 if place is None else place[1], "index": index, "is_subword": False}
        for index, (scores, place) in enumerate(zip(probs, places, strict=True))
    ]  # fmt: skip


class _Tokenizer:
    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)
