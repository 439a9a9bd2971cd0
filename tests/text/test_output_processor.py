"""How the engine's outputs for one choice become what a client is sent."""

from itertools import chain, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.request import FinishReason
from app.core.sampling import Logprobs
from app.core.wire import RequestOutput
from app.text.output_processor import OutputProcessor, StopConditions, TextDelta
from app.text.tokenizer import Tokenizer

TEXT = "Yes 😀 — the quick brown fox\nUser: hello"


def output(token_ids: list[int], reason: FinishReason | None = None) -> RequestOutput:
    """An output with logprobs that identify its tokens."""
    logprobs = [Logprobs([id_], [-float(id_)]) for id_ in token_ids]
    return RequestOutput(request_id="r", token_ids=token_ids, logprobs=logprobs, finish_reason=reason)


def run(tokenizer: Tokenizer, outputs: list[RequestOutput], **conditions: Any) -> list[TextDelta]:
    """All deltas until the choice has ended."""
    processor = OutputProcessor(tokenizer, [1], StopConditions(**conditions))
    deltas = []
    for item in outputs:
        deltas.append(processor.process(item))
        if deltas[-1].finish_reason is not None:
            break
    return deltas


def text_of(deltas: list[TextDelta]) -> str:
    """The text of all deltas."""
    return "".join(delta.text for delta in deltas)


def test_however_outputs_are_merged_the_choice_is_the_same(smol: Tokenizer) -> None:
    token_ids = smol.encode(TEXT, False)

    @settings(deadline=None)
    @given(st.sets(st.integers(1, len(token_ids) - 1)), st.sampled_from([[], ["\nUser:"], ["fox\nU", "quick"], ["zz"]]))
    def check(cuts: set[int], stop: list[str]) -> None:
        edges = [0, *sorted(cuts), len(token_ids)]
        parts = [token_ids[a:b] for a, b in pairwise(edges)]
        outputs = [output(part) for part in parts[:-1]] + [output(parts[-1], FinishReason.LENGTH)]
        deltas, one_by_one = run(smol, outputs, stop=stop), run(smol, _single(token_ids), stop=stop)
        first = min((TEXT.index(s) for s in stop if s in TEXT), default=len(TEXT))
        assert text_of(deltas) == TEXT[:first]
        for name in ("token_ids", "logprobs"):
            merged, single = ([getattr(delta, name) for delta in each] for each in (deltas, one_by_one))
            assert [*chain(*merged)] == [*chain(*single)]
        hit = next((s for s in stop if TEXT[first:].startswith(s)), None)
        assert deltas[-1].stop_reason == hit
        assert deltas[-1].finish_reason is (FinishReason.LENGTH if hit is None else FinishReason.STOP)
        assert all(delta.finish_reason is None for delta in deltas[:-1])
        assert all([e.token_ids[0] for e in delta.logprobs] == delta.token_ids for delta in deltas)

    check()


def _single(token_ids: list[int]) -> list[RequestOutput]:
    return [output([id_]) for id_ in token_ids[:-1]] + [output(token_ids[-1:], FinishReason.LENGTH)]


@pytest.mark.parametrize(("include", "want"), [(False, "Yes 😀 — the "), (True, "Yes 😀 — the quick")])
def test_a_stop_string_ends_the_choice_before_the_engine_knows(smol: Tokenizer, include: bool, want: str) -> None:
    token_ids = smol.encode(TEXT, False)
    (delta,) = run(smol, [output(token_ids)], stop=["quick"], include_stop_str_in_output=include)
    assert (delta.text, delta.stop_reason, delta.finish_reason) == (want, "quick", FinishReason.STOP)
    assert delta.needs_abort
    assert smol.decode(delta.token_ids) == "Yes 😀 — the quick"  # what came after the hit does not count
    assert len(delta.logprobs) == len(delta.token_ids)
    (last,) = run(smol, [output(token_ids, FinishReason.LENGTH)], stop=["quick"])
    assert not last.needs_abort


def test_stop_strings_are_not_looked_for_before_min_tokens(smol: Tokenizer) -> None:
    token_ids = smol.encode(" a a a a", False)
    assert len(token_ids) == 4
    for min_tokens, want in [(0, " "), (1, " "), (2, " a "), (4, " a a a "), (5, " a a a a")]:
        deltas = run(smol, _single(token_ids), stop=["a"], min_tokens=min_tokens)
        assert text_of(deltas) == want
        assert sum(len(delta.token_ids) for delta in deltas) == max(1, min(min_tokens, 4))


def test_stop_tokens(smol: Tokenizer) -> None:
    word, stop, eos = smol.encode(" fox", False), smol.encode(" dog", False)[0], min(smol.eos_token_ids)
    for include, want in [(False, " fox"), (True, " fox dog")]:
        conditions = {"stop_token_ids": frozenset({stop}), "include_stop_str_in_output": include}
        (delta,) = run(smol, [output([*word, stop], FinishReason.STOP)], **conditions)
        assert (delta.text, delta.stop_reason, delta.needs_abort) == (want, stop, False)
        assert delta.token_ids == [*word, stop]
    (delta,) = run(smol, [output([*word, eos], FinishReason.STOP)], include_stop_str_in_output=True)
    assert (delta.text, delta.stop_reason, delta.token_ids) == (" fox", None, [*word, eos])


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.STOP, FinishReason.ABORT])
def test_text_that_was_held_back_is_sent_at_the_end(smol: Tokenizer, reason: FinishReason) -> None:
    held = smol.encode("fox\nUs", False)
    deltas = run(smol, [output(held), output([], reason)], stop=["\nUser:"])
    assert [delta.text for delta in deltas] == ["fox", "\nUs"]
    half = smol.encode("😀", False)[:1]
    deltas = run(smol, [output(half), output([], reason)])
    assert [delta.text for delta in deltas] == ["", "\ufffd"]
    (delta,) = run(smol, [output(half, FinishReason.LENGTH)], stop=["\ufffd"])
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("", FinishReason.STOP, "\ufffd")


def test_a_failed_request_passes_its_error_on(smol: Tokenizer) -> None:
    failed = RequestOutput(request_id="r", token_ids=[], finish_reason=FinishReason.ERROR, error="out of luck")
    (delta,) = run(smol, [failed], stop=["x"])
    assert (delta.text, delta.finish_reason, delta.error) == ("", FinishReason.ERROR, "out of luck")
