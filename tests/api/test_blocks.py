"""A message as a sequence of blocks: reasoning, text and tool calls."""

from hypothesis import given
from hypothesis import strategies as st

from app.api.generation.blocks import Block, Blocks, Change
from app.text.message_parser import MessageDelta, ToolCallDelta

TEXTS = st.text(alphabet="ab{}", min_size=1, max_size=5)
PARTS = st.lists(
    st.tuples(st.sampled_from(["reasoning", "text"]), TEXTS) | st.tuples(st.just("call"), TEXTS, TEXTS), max_size=5
)


def deltas_of(parts: list[tuple[str, ...]]) -> list[MessageDelta]:
    """The message, one character in each delta."""
    deltas, num_calls = [], 0
    for kind, *rest in parts:
        if kind == "call":
            deltas.append(MessageDelta(tool_calls=[ToolCallDelta(num_calls, "", rest[0])]))
            deltas += [MessageDelta(tool_calls=[ToolCallDelta(num_calls, character)]) for character in rest[1]]
            num_calls += 1
        else:
            field = "reasoning" if kind == "reasoning" else "content"
            deltas += [MessageDelta(**{field: character}) for character in rest[0]]
    return deltas


def take_all(blocks: Blocks, deltas: list[MessageDelta]) -> list[Change]:
    changes = [change for delta in deltas for change in blocks.take(delta)]
    return changes + list(blocks.finish())


def merged(parts: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Merge adjacent blocks of the same kind, except tool calls."""
    result: list[tuple[str, ...]] = []
    for part in parts:
        if result and part[0] == result[-1][0] != "call":
            result[-1] = (part[0], result[-1][1] + part[1])
        else:
            result.append(part)
    return result


def described(block: Block) -> tuple[str, ...]:
    kind = {"TEXT": "text", "REASONING": "reasoning", "TOOL_CALL": "call"}[block.kind.name]
    return (kind, block.name, block.text) if kind == "call" else (kind, block.text)


@given(PARTS)
def test_a_message_is_a_row_of_blocks(parts: list[tuple[str, ...]]) -> None:
    blocks = Blocks()
    changes = take_all(blocks, deltas_of(parts))
    assert [described(block) for block in blocks.all] == (merged(parts) or [("text", "")])
    # Each block begins, goes on, and is over before the next one begins.
    assert [change.block.index for change in changes] == sorted(change.block.index for change in changes)
    for block in blocks.all:
        first, *middle, last = [change.text for change in changes if change.block is block]
        assert first is None
        assert last is None
        assert "".join(text or "" for text in middle) == block.text
        assert None not in middle


def test_all_of_a_message_at_once_comes_in_the_order_in_which_models_write_it() -> None:
    calls = [ToolCallDelta(0, "{}", "f"), ToolCallDelta(1, "[]", "g")]
    blocks = Blocks()
    take_all(blocks, [MessageDelta("said", "thought", calls)])
    assert [described(block) for block in blocks.all] == [
        ("reasoning", "thought"),
        ("text", "said"),
        ("call", "f", "{}"),
        ("call", "g", "[]"),
    ]
    assert len({block.call_id for block in blocks.all[2:]}) == 2
    single = Blocks(several_calls=False)
    take_all(single, [MessageDelta("said", "", calls)])
    assert [described(block) for block in single.all] == [("text", "said"), ("call", "f", "{}")]
