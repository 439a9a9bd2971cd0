"""What an encoder-decoder makes of a prompt: its encoder reads the prompt, and its decoder begins a text of its own."""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...checkpoint.encoder_decoders import EncoderDecoderConfig
from ...core.media import Media
from ...core.sources import sound_source, text_source
from ...errors import ContextLengthError, UnsupportedError
from ...text.tokenizer import Tokenizer
from ..service import Service

_LANGUAGE = re.compile(r"(__)?[a-z]{2,3}(_[A-Za-z]{2,4})?(__)?")
"""The tokens of multilingual models for languages: en_XX of mBART, __en__ of M2M100, eng_Latn of NLLB."""


class Beginning(NamedTuple):
    """What a request to the engine begins with."""

    token_ids: list[int]
    """The decoder's prompt."""
    source: Media | None = None
    """What the encoder reads."""

    @property
    def num_tokens(self) -> int:
        """As they are counted for clients: those of the prompt that they have sent."""
        return len(self.token_ids) if self.source is None else self.source.num_tokens


@dataclass(frozen=True)
class Languages:
    """Of a translation; empty is what the model's files say."""

    source: str = ""
    target: str = ""


AS_CONFIGURED = Languages()


def beginning_of(service: Service, prompt: list[int], param: str, languages: Languages = AS_CONFIGURED) -> Beginning:
    """A prompt's tokens as the engine wants them. Raises InvalidRequestError for what the model cannot read.

    `param`: the field with the prompt.
    """
    described = service.encoder_decoder
    if described is None:
        return Beginning(prompt)
    most = service.ready().max_source_len
    if len(prompt) > most:
        raise ContextLengthError(
            f"This model's encoder reads {most} tokens at most. However, the {param} has {len(prompt)} tokens.", param
        )
    start = list(described.beginning)
    if languages.source:
        prompt = _in_language(service.tokenizer, prompt, languages.source)
    if languages.target:
        code = _language(service.tokenizer, languages.target, "target_language")
        # The code is the last of the tokens that a text begins with: forced behind the first, or the first itself.
        start = [*(token for token in start if not _is_language(service.tokenizer, token)), code]
    return Beginning(start, text_source(prompt))


def _in_language(tokenizer: Tokenizer, prompt: list[int], language: str) -> list[int]:
    """A prompt with another language's token in the place of that which the tokenizer has put around it."""
    code = _language(tokenizer, language, "source_language")
    changed = [code if _is_language(tokenizer, token) else token for token in prompt]
    if code not in changed:
        raise UnsupportedError(
            "source_language: this model's tokenizer marks no text with a language", "source_language"
        )
    return changed


def _language(tokenizer: Tokenizer, name: str, param: str) -> int:
    """The token of a language. Raises UnsupportedError if there is none."""
    for text in (name, f"__{name}__"):
        token = tokenizer.added_id(text)
        if token is not None and _is_language(tokenizer, token):
            return token
    raise UnsupportedError(f"{param}: this model has no token for the language {name}", param)


def _is_language(tokenizer: Tokenizer, token: int) -> bool:
    return token in tokenizer.special_ids and _LANGUAGE.fullmatch(tokenizer.token_text(token)) is not None


def made_up_source(described: EncoderDecoderConfig) -> Media:
    """Something that the model's encoder reads."""
    if not described.hears:
        return text_source([0])
    assert described.max_source_len is not None
    silence = np.zeros((described.num_mel_bins, described.num_frames), np.float32)
    return sound_source(silence, described.max_source_len)
