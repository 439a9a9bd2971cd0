"""From a GGUF file's vocabulary to tokenizer.json and tokenizer_config.json, by the rules of llama.cpp's loader."""

from typing import Any, Protocol

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from .pre_tokenizers import PRE_TOKENIZERS

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
"""Types of tokens."""
_SPACE = "▁"
"""SentencePiece's sign for a space."""
_DEFAULT_IDS = {"gpt2": {"bos": 11, "eos": 11}, "llama": {"bos": 1, "eos": 2, "unknown": 0}, "gemma4": {}}
"""Special tokens of files that do not name them, by the kind of vocabulary."""
_ENDS = frozenset(("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"))
_ENDS |= {"<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<eos>"}
_ENDS |= {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>"}
_ENDS |= {"<REPO>", "<reponame>", "<|file_sep|>", "<|tool_response>"}
_ENDS |= {"<|end_of_text|>", "<end_of_utterance>", "<turn|>", "<｜end▁of▁sentence｜>", "[e~["}
"""Tokens that end a text or a turn, whatever else the file says."""
_NOT_READ = ("seperator", "cls", "mask", "fim_pre", "fim_suf", "fim_mid", "prefix", "suffix", "middle")
"""Tokens that only tell callers how to write prompts of other kinds."""


class Metadata(Protocol):
    """What a file says of its tokenizer; see `GgufFile`."""

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata."""

    def all_of(self, prefix: str) -> dict[str, Any]:
        """All values whose keys begin with a prefix, by the rest of the key."""


class GgufTokenizer:
    """The tokenizer that a file describes. Raises ValueError for what it says and nobody here knows."""

    def __init__(self, file: Metadata) -> None:
        self._file = file
        self._kind = str(self._get("model"))
        if self._kind not in _DEFAULT_IDS:
            raise ValueError(f"tokenizer.ggml.model {self._kind} is not supported")
        self._tokens = [text or f"[EMPTY_{id_}]" for id_, text in enumerate(self._get("tokens") or [])]
        self._ids = {text: id_ for id_, text in enumerate(self._tokens)}
        self._types: list[int] = self._get("token_type") or [1] * len(self._tokens)
        if len(self._ids) < len(self._tokens) or len(self._types) < len(self._tokens):
            raise ValueError("tokenizer.ggml.tokens: a token is there twice, or lacks its type")
        for name in _NOT_READ:
            self._get(f"{name}_token_id")
        makers = {"gpt2": self._byte_pairs, "llama": self._sentence_pieces, "gemma4": self._gemma4}
        self.fast = makers[self._kind]()
        self._add_tokens()
        self._add_ends()

    def _get(self, key: str, default: Any = None) -> Any:
        return self._file.get(f"tokenizer.ggml.{key}", default)

    # ------------------------------------------------------------------ the two kinds of vocabulary

    def _byte_pairs(self) -> Tokenizer:
        """Merges of bytes, which are written in GPT-2's alphabet."""
        name = self._get("pre", "default")
        if name not in PRE_TOKENIZERS:
            raise ValueError(f"tokenizer.ggml.pre {name} is not supported")
        pre = PRE_TOKENIZERS[name]
        self._adds_bos = pre.adds_bos
        merges = [_pair(merge) for merge in self._get("merges") or []]
        self._get("scores")  # it has none that count
        if self._get("add_space_prefix", False):
            raise ValueError("tokenizer.ggml.add_space_prefix is not supported with byte pairs")
        fast = Tokenizer(BPE(self._ids, merges, ignore_merges=pre.ignores_merges))
        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        fast.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytes_])
        fast.decoder = decoders.ByteLevel()
        return fast

    def _sentence_pieces(self) -> Tokenizer:
        """Pieces with scores: of all neighbours that make a token, those are merged whose token has the best."""
        self._adds_bos = True
        self._get("merges")  # they are those that the scores give
        if (pre := self._get("pre", "default")) != "default":
            raise ValueError(f"tokenizer.ggml.pre {pre} is not supported with scores")
        if self._get("remove_extra_whitespaces", False):
            raise ValueError("tokenizer.ggml.remove_extra_whitespaces is not supported")
        scores = self._get("scores") or []
        if len(scores) < len(self._tokens):
            raise ValueError("tokenizer.ggml.scores: a token lacks its score")
        unknown = self._id_of("unknown")
        fast = Tokenizer(
            BPE(
                self._ids,
                self._merges(scores),
                byte_fallback=True,
                fuse_unk=True,
                unk_token=None if unknown is None else self._tokens[unknown],
            )
        )
        begins = [normalizers.Prepend(_SPACE)] if self._get("add_space_prefix", True) else []
        fast.normalizer = normalizers.Sequence([*begins, normalizers.Replace(" ", _SPACE)])
        strip = [decoders.Strip(" ", 1, 0)] if begins else []
        fast.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        return fast

    def _gemma4(self) -> Tokenizer:
        """Merges of characters, within a line. Every text begins with BOS, whatever the file says."""
        self._adds_bos = True
        self._get("pre"), self._get("scores"), self._get("add_space_prefix")
        merges = [_pair(merge) for merge in self._get("merges") or []]
        fast = Tokenizer(BPE(self._ids, merges, byte_fallback=True))
        fast.normalizer = normalizers.Replace(" ", _SPACE)
        fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+"), "isolated")
        fast.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
        return fast

    def _merges(self, scores: list[float]) -> list[tuple[str, str]]:
        """All ways to make a token of two others, the best token first."""
        merges = []
        for text, id_ in self._ids.items():
            for at in range(1, len(text)):
                left, right = self._ids.get(text[:at]), self._ids.get(text[at:])
                if left is not None and right is not None:
                    merges.append((-scores[id_], id_, left, right))
        return [(self._tokens[left], self._tokens[right]) for _, _, left, right in sorted(merges)]

    # ------------------------------------------------------------------ special tokens

    def _add_tokens(self) -> None:
        """Have control tokens and the user's tokens found in a text before it is cut."""
        for type_, add in ((_CONTROL, self.fast.add_special_tokens), (_USER_DEFINED, self.fast.add_tokens)):
            texts = [text for text, kind in zip(self._tokens, self._types, strict=False) if kind == type_]
            if type_ == _CONTROL:
                texts += [text for text in _ENDS if text in self._ids and self._types[self._ids[text]] != _CONTROL]
            add([AddedToken(text, normalized=False, special=type_ == _CONTROL) for text in texts])

    def _add_ends(self) -> None:
        """Have BOS and EOS put around a text."""
        bos, eos = self._id_of("bos"), self._id_of("eos")
        adds_bos = self._get("add_bos_token", self._adds_bos) or self._kind == "gemma4"
        adds_eos = self._get("add_eos_token", False)
        if self._get("add_sep_token", False):
            raise ValueError("tokenizer.ggml.add_sep_token is not supported")
        first = [self._tokens[bos]] if adds_bos and bos is not None else []
        last = [self._tokens[eos]] if adds_eos and eos is not None else []
        if first or last:
            self.fast.post_processor = processors.TemplateProcessing(
                single=[*first, "$A", *last],
                pair=[*first, "$A", *last, *(f"{token}:1" for token in first), "$B:1", *(f"{t}:1" for t in last)],
                special_tokens=[(text, self._ids[text]) for text in dict.fromkeys((*first, *last))],
            )

    def _id_of(self, name: str) -> int | None:
        """A special token, as the file names it, or its kind's own; None if the vocabulary does not reach so far."""
        default = _DEFAULT_IDS[self._kind].get(name)
        for id_ in (self._get(f"{name}_token_id"), default):
            if isinstance(id_, int) and 0 <= id_ < len(self._tokens):
                return id_
        return None

    def end_ids(self) -> list[int]:
        """All tokens that end a text or a turn."""
        named = {self._id_of(name) for name in ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")} - {None}
        ends = {self._tokens[id_]: id_ for id_ in named if id_ is not None}
        ends |= {text: id_ for text, id_ in self._ids.items() if text in _ENDS}
        if ("<|call|>" in ends and "<|return|>" in ends) or ("<|calls|>" in ends and "<|flush|>" in ends):
            ends.pop("<|end|>", None)  # ends a message there, not the turn
        if "<|tool_response>" in ends:
            ends.pop("</s>", None)  # an ordinary token of Gemma 4
        return sorted(ends.values())

    def config(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        ids = {field: self._id_of(name) for field, name in names.items()}
        named = {field: self._tokens[id_] for field, id_ in ids.items() if id_ is not None}
        self._file.get("tokenizer.chat_templates")  # the names of those that follow
        templates = self._file.all_of("tokenizer.chat_template.")
        if (default := self._file.get("tokenizer.chat_template")) is not None:
            templates = {"default": default} | templates
        listed = [{"name": name, "template": template} for name, template in templates.items()]
        return named | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **({"chat_template": listed if len(listed) > 1 else listed[0]["template"]} if listed else {}),
        }


def _pair(merge: str) -> tuple[str, str]:
    """Both parts of a merge. The first may itself be a space, in vocabularies that are not of bytes."""
    left, _, right = merge[1:].partition(" ")
    return merge[0] + left, right
