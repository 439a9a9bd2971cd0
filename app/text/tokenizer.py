"""Turns text into token ids and back, with a model's own tokenizer.json, without torch or transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Encoding, decoders, models
from tokenizers import Tokenizer as FastTokenizer

from ..checkpoint.byte_alphabet import byte_alphabet
from ..checkpoint.folder import SOURCE_TOKENIZER, ModelFolder
from ..errors import ModelError

_BYTE_OF = byte_alphabet()


class EncoderInput(NamedTuple):
    """One input of an encoder. The lists are parallel."""

    token_ids: list[int]
    type_ids: list[int]
    """The text of a pair that each token belongs to, 0 or 1."""
    num_ignored: int = 0
    """See `Extras`."""
    places: Sequence[tuple[int, int] | None] = ()
    """Where asked for: the characters of the text that each token stands for, and None for special tokens."""


class Tokenizer:
    """One model's tokenizer, with the special tokens and defaults that its files name."""

    def __init__(self, folder: Path) -> None:
        """Read a model folder; ModelError if there is no usable tokenizer.json. A model that reads no text needs none:
        it has no tokens."""
        self._fast = _read(folder)
        self._source = _read_source(folder)
        """What a text is cut by, if another tokenizer writes what is generated."""
        self._fast.no_padding()
        self._fast.no_truncation()
        self._folder = ModelFolder(folder)
        try:
            self._add_missing_tokens()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{folder / 'tokenizer_config.json'} declares broken tokens: {error!r}") from error
        try:
            self.eos_token_ids = self._eos_token_ids()
            """Every token that ends a text according to any of the model's files."""
            self.default_sampling = self._default_sampling()
            """Sampling parameters that the model's authors recommend in generation_config.json."""
        except (TypeError, ValueError) as error:
            raise ModelError(f"generation_config.json or config.json in {folder}: {error}") from error
        added = self._fast.get_added_tokens_decoder()
        self._added_ids = {token.content: id_ for id_, token in added.items()}
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self.control_tokens = [token.content for token in added.values() if token.special]
        self.other_tokens = [token.content for token in added.values() if not token.special]
        """Added tokens that are not special, of which a chat template may contain some."""
        self._added_eos = self._eos_to_add()
        """What stands behind an encoder's input, though tokenizer.json does not say so; None if nothing does."""
        self.vocab_size: int = self._fast.get_vocab_size(with_added_tokens=True)
        vocabulary = self._fast.get_vocab(with_added_tokens=True)
        self.longest_token = max(map(len, vocabulary), default=1)
        """Characters of the longest token. A text has at least its length divided by this number of tokens, unless many
        unknown words become one token."""
        self.is_byte_level = isinstance(self._fast.decoder, decoders.ByteLevel)
        """Whether every token stands for bytes by itself, so that a text is their concatenation."""
        # Made now, not at the first token, because every open stream would wait for it.
        self._bytes_of = self._byte_table() if self.is_byte_level else []

    def _add_missing_tokens(self) -> None:
        """Add tokens that other files declare and tokenizer.json does not, and make named tokens special.

        transformers does the same, but it also adds tokens whose ids the model has no embedding for.
        """
        declared = self.config.get("added_tokens_decoder") or {}
        known = {repr(token) for token in self._fast.get_added_tokens_decoder().values()}
        for declared_id, fields in sorted(declared.items(), key=lambda item: int(item[0])):
            token, id_ = AddedToken(**fields), self._fast.token_to_id(fields["content"])
            next_id = self._fast.get_vocab_size() if id_ is None else id_
            if repr(token) not in known and next_id == int(declared_id):
                self._fast.add_tokens([token])
        added = {token.content: token for token in self._fast.get_added_tokens_decoder().values()}
        extra = self.config.get("extra_special_tokens") or self.config.get("additional_special_tokens") or []
        extra_names = map(_content, extra.values() if isinstance(extra, dict) else extra)
        for name in (*self.special_tokens.values(), *extra_names):
            if name is not None and self._fast.token_to_id(name) is not None:
                token = added.get(name) or AddedToken(name, normalized=False)
                token.special = True
                self._fast.add_special_tokens([token])

    def added_id(self, text: str) -> int | None:
        """The id of the added token that is exactly this text, special or not; None if there is none."""
        return self._added_ids.get(text)

    def to_json(self) -> str:
        """The tokenizer in the form of a tokenizer.json."""
        text: str = self._fast.to_str()
        return text

    # ------------------------------------------------------------------ what the model's files say

    @property
    def config(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        return self._folder.read_object("tokenizer_config.json")

    @property
    def special_tokens(self) -> dict[str, str]:
        """Named tokens, such as bos_token, for chat templates."""
        declared = self._folder.read_object("special_tokens_map.json") | self.config
        named = {name: _content(value) for name, value in declared.items() if name.endswith("_token")}
        return {name: text for name, text in named.items() if text is not None}

    def _eos_token_ids(self) -> frozenset[int]:
        ids: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            value = self._folder.read_object(name).get("eos_token_id")
            ids.update(value if isinstance(value, list) else [] if value is None else [value])
        if not all(type(id_) is int for id_ in ids):
            raise ValueError(f"eos_token_id is {sorted(ids, key=str)}")
        token = self.special_tokens.get("eos_token")
        if token is not None and (id_ := self._fast.token_to_id(token)) is not None:
            ids.add(id_)
        return frozenset(ids)

    def _eos_to_add(self) -> int | None:
        """The token that `add_eos_token` in tokenizer_config.json asks for, unless tokenizer.json adds it anyway."""
        eos = self.special_tokens.get("eos_token")
        id_ = None if eos is None else self._fast.token_to_id(eos)
        adds = self.config.get("add_eos_token") is True and id_ not in self._fast.encode("").ids[-1:]
        return id_ if adds else None

    def _default_sampling(self) -> dict[str, float]:
        config = self._folder.read_object("generation_config.json")
        if config.get("do_sample") is False:
            return {}
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        for name in names:
            if type(config.get(name)) not in (int, float, type(None)):
                raise ValueError(f"{name} is {config[name]!r}")
        return {name: config[name] for name in names if config.get(name) is not None}

    # ------------------------------------------------------------------ encoding

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, by default with the special tokens that the tokenizer adds (such as BOS)."""
        ids: list[int] = (self._source or self._fast).encode(text, add_special_tokens=add_special_tokens).ids
        if self._source is None:
            return ids
        unknown = self._fast.token_to_id("<unk>")
        return [id_ if unknown is None or id_ < self.vocab_size else unknown for id_ in ids]

    def encoder_input(
        self,
        text: "str | list[int] | tuple[str, str]",
        limit: int | None,
        add_special_tokens: bool = True,
        wants_places: bool = False,
    ) -> EncoderInput:
        """An encoder's input from a text, token ids, or a pair of texts, cut to `limit` tokens unless that is None."""
        if isinstance(text, list):
            return EncoderInput(text[:limit], [0] * len(text[:limit]))
        texts = (text,) if isinstance(text, str) else text
        parts = [self._fast.encode(part, add_special_tokens=False) for part in texts]
        if limit is not None:
            num_special = self._fast.num_special_tokens_to_add(len(parts) == 2) + (self._added_eos is not None)
            left = max(0, limit - num_special * add_special_tokens)
            parts[0].truncate(min(left, len(parts[0])))
            for part in parts[1:]:
                part.truncate(min(left - len(parts[0]), len(part)))
        other = parts[1] if len(parts) == 2 else None
        whole = self._fast.post_process(parts[0], other, add_special_tokens=add_special_tokens)
        ids, places = whole.ids, _places(whole) if wants_places else []
        if add_special_tokens and self._added_eos is not None:
            ids = [*ids, self._added_eos]
            return EncoderInput(ids, [0] * len(ids), places=[*places, None])
        if "token_type_ids" not in (self.config.get("model_input_names") or ["token_type_ids"]):
            return EncoderInput(ids, [0] * len(ids), places=places)  # the model was trained without them
        return EncoderInput(ids, whole.type_ids, places=places)

    def beginning(self, text: str, count: int) -> str:
        """So much of a text as its first tokens are made of, without what a tokenizer puts around it."""
        offsets = self._fast.encode(text, add_special_tokens=False).offsets
        return text if len(offsets) <= count else text[: offsets[count - 1][1] if count > 0 else 0]

    def encode_segments(self, segments: list[tuple[str, bool]]) -> list[int]:
        """Token ids of a rendered chat, given as pieces: (text, whether it may contain control tokens)."""
        ids: list[int] = []
        for text, trusted in segments:
            encode = self._encode_trusted if trusted else self._encode_plain
            ids += self._encode_continuation(encode, text) if ids else encode(text)
        return ids

    def _encode_trusted(self, text: str) -> list[int]:
        return self.encode(text, add_special_tokens=False)

    def _encode_plain(self, text: str) -> list[int]:
        """Ids of a text in which control tokens are plain text."""
        ids = self._run_model(text)
        if self.added_id(text) not in ids and self.special_ids.isdisjoint(ids):
            return ids
        # A vocabulary may have control tokens as ordinary entries too. Encoded letter by letter, none can come up.
        encoded = [self._encode_continuation(self._run_model, char) for char in text[1:]]
        return sum(encoded, self._run_model(text[:1]))

    def _run_model(self, text: str) -> list[int]:
        """Run the tokenizer's pipeline without its search for added tokens."""
        if self._fast.normalizer is not None:
            text = self._fast.normalizer.normalize_str(text)
        splitter = self._fast.pre_tokenizer
        words = [text] if splitter is None else [word for word, _ in splitter.pre_tokenize_str(text)]
        model = self._fast.model
        return [token.id for word in words for token in model.tokenize(word)]

    def _encode_continuation(self, encode: Callable[[str], list[int]], text: str) -> list[int]:
        """Ids of a text inside a chat, without the space that SentencePiece puts in front of a text.

        The text is encoded behind a line break, whose ids are then removed, as transformers does.
        """
        line_break = self._encode_trusted("\n")
        ids = encode("\n" + text)
        return ids[len(line_break) :] if ids[: len(line_break)] == line_break else encode(text)

    # ------------------------------------------------------------------ decoding

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        text: str = self._fast.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def _byte_table(self) -> list[bytes]:
        """The bytes of each token id, with a byte-level tokenizer."""
        vocabulary = self._fast.get_vocab(with_added_tokens=True)
        table = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, id_ in vocabulary.items():
            table[id_] = _token_bytes(token)
        return table

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token by itself; b"" for ids that the vocabulary does not have."""
        if self.is_byte_level:
            return self._bytes_of[token_id] if token_id < len(self._bytes_of) else b""
        token = self._fast.id_to_token(token_id)
        if token is None:
            return b""
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):  # byte fallback
            return bytes([int(token[3:5], 16)])
        return str(token).replace("▁", " ").encode()  # SentencePiece's sign for a space

    def token_text(self, token_id: int) -> str:
        """The text of a token by itself."""
        return self.token_bytes(token_id).decode(errors="replace")


def _places(encoding: Encoding) -> list[tuple[int, int] | None]:
    return [
        None if is_special else place
        for place, is_special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    ]


def _token_bytes(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:  # an added token that was not written in the byte alphabet
        return token.encode()


def _content(value: Any) -> str | None:
    """The text of a token in tokenizer_config.json, where it is a text or an object with its content."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _read_source(folder: Path) -> FastTokenizer | None:
    file = folder / SOURCE_TOKENIZER
    return FastTokenizer.from_file(str(file)) if file.is_file() else None


def _read(folder: Path) -> FastTokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        if ModelFolder(folder).reads_text:
            raise ModelError(f"{folder} has no tokenizer.json")
        return FastTokenizer(models.BPE())
    try:
        return FastTokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        raise ModelError(f"{file} is not a usable tokenizer: {error}") from error
