"""Marian's tokenizer: SentencePiece for each language, whose pieces have the ids that vocab.json gives them.

A text to translate is cut by source.spm alone, so there are two tokenizers: one for such texts, and one for what is
generated, which knows the text of each id.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from .sentence_pieces import PieceFile, read_pieces

SOURCE = "source.spm"
_SPECIAL = "</s>", "<unk>", "<pad>"
_NORMAL, _USER_DEFINED = 1, 4
"""Of SentencePiece's types of pieces."""
_UNIGRAM = 1
"""Of its types of models: the most probable pieces make up a text (Kudo, 2018)."""


class MarianTokenizers(NamedTuple):
    """For what is generated, and for texts to translate. Ids of the latter beyond the vocabulary stand for <unk>."""

    written: Any
    source: Any


def marian_tokenizers(folder: Path, config: dict[str, Any]) -> MarianTokenizers:
    """The tokenizers of a folder with source.spm and vocab.json. Raises ValueError for what is not supported.

    config: tokenizer_config.json.
    """
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    if config.get("separate_vocabs") or (folder / "target_vocab.json").exists():
        raise ValueError("separate_vocabs: a vocabulary for each language is not supported")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))) or not {*_SPECIAL[:2]} <= vocabulary.keys():
        raise ValueError("vocab.json: each id up to the last one has to have one piece, and </s> and <unk> to be there")
    file = read_pieces((folder / SOURCE).read_bytes())
    scores = _scores(file)
    texts = sorted(vocabulary, key=vocabulary.__getitem__)
    written = _tokenizer([(text, 0.0) for text in texts], file, [])
    codes = [text for text in texts if text.startswith(">>") and text.endswith("<<")]
    # What source.spm does not have must not be found in a text, and must not change the smallest score, which says how
    # improbable unknown letters are. What it has and the vocabulary lacks takes its part in how a text is cut.
    found = [
        (text, scores[text]) if text in scores else (text if text in (*_SPECIAL, *codes) else f"\0{text}", 0.0)
        for text in texts
    ]
    found += [(text, score) for text, score in scores.items() if text not in vocabulary]
    return MarianTokenizers(written, _tokenizer(found, file, codes))


def _scores(file: PieceFile) -> dict[str, float]:
    """Of the pieces that a text is made of."""
    if file.trainer.get(3, _UNIGRAM) != _UNIGRAM or any(piece.kind == _USER_DEFINED for piece in file.pieces):
        raise ValueError(f"{SOURCE}: only pieces that are chosen by their probabilities are supported")
    return {piece.text: piece.score for piece in file.pieces if piece.kind == _NORMAL}


def _tokenizer(pieces: list[tuple[str, float]], file: PieceFile, codes: list[str]) -> Any:
    """codes: pieces such as >>fra<<, which stand in front of a text as they are."""
    ids = {text: id_ for id_, (text, _) in enumerate(pieces)}
    fast: Any = Tokenizer(Unigram(pieces, unk_id=ids["<unk>"], byte_fallback=False))
    steps: list[Any] = []
    if charsmap := file.normalizer.get(2):
        steps.append(normalizers.Precompiled(charsmap))
    if file.normalizer.get(4, 1):
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    fast.normalizer = normalizers.Sequence(steps)
    scheme = "always" if file.normalizer.get(3, 1) else "never"
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    fast.decoder = decoders.Metaspace(prepend_scheme=scheme)
    fast.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", ids["</s>"])])
    fast.add_special_tokens([AddedToken(text, normalized=False) for text in _SPECIAL if text in ids])
    fast.add_tokens([AddedToken(text, normalized=False) for text in codes])
    return fast
