"""The tokenizer that a file of tiktoken describes: tokens in base64, with their ranks."""

import base64
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from .byte_alphabet import byte_alphabet
from .gguf.pre_tokenizers import PRE_TOKENIZERS

_RANK = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
"""A line of such a file."""
_KIMI_LETTERS = r"\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]"
_KIMI_END = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_KIMI = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{_KIMI_LETTERS}]*[\p{{Ll}}{_KIMI_LETTERS}]+{_KIMI_END}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{_KIMI_LETTERS}]+[\p{{Ll}}{_KIMI_LETTERS}]*{_KIMI_END}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{index}|>" for index in range(205)))


def is_tiktoken(file: Path) -> bool:
    """Whether a file looks like one of tiktoken."""
    with file.open("rb") as opened:
        return _RANK.match(opened.readline(1000)) is not None


def tiktoken_tokenizer(file: Path, config: dict[str, Any]) -> Any:
    """Bytes, merged in the order of their ranks.

    How a text is cut before is not in the file, but in the code of a class, by whose name it is known here.
    """
    known: dict[Any, tuple[str, tuple[str, ...]]] = {
        "QWenTokenizer": (PRE_TOKENIZERS["qwen2"].patterns[0], _QWEN_TOKENS),
        "ChatGLM4Tokenizer": (PRE_TOKENIZERS["glm4"].patterns[0], ()),
        "TikTokenTokenizer": (_KIMI, ()),
    }
    kind = config.get("tokenizer_class")
    if kind not in known:
        raise ValueError(f"nothing is known of how the tokenizer class {kind} cuts a text for {file.name}")
    pattern, special = known[kind]
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, file.read_bytes().splitlines())}
    fast = Tokenizer(BPE(*_merges(ranks), ignore_merges=True))
    cut, bytes_ = Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = Sequence([cut, bytes_])
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    return fast


def _merges(ranks: dict[bytes, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary of BPE, and its merges: of all neighbours that make a token, the first rank first."""
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    texts = {token: "".join(letters[byte] for byte in token) for token in ranks}
    found = [
        (rank, ranks[token[:at]], ranks[token[at:]], texts[token[:at]], texts[token[at:]])
        for token, rank in ranks.items()
        for at in range(1, len(token))
        if token[:at] in ranks and token[at:] in ranks
    ]
    return {texts[token]: rank for token, rank in ranks.items()}, [(left, right) for *_, left, right in sorted(found)]
