"""From the texts of a request to the inputs of the model that reads them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...checkpoint.encoders import EncoderConfig
from ...errors import ContextLengthError, InvalidRequestError, UnsupportedError
from ...text.tokenizer import EncoderInput, Tokenizer
from ..chat.prepare import encode_chat
from ..chat.schema import ChatFields
from ..generation.prompts import as_list, check_length, in_thread
from ..service import Service
from .schema import EmbeddingRequest, EncoderFields, InputFields, PairFields

Text = str | list[int] | tuple[str, str]
"""A text, its token ids, or a pair of texts."""
_INSTRUCTION = re.compile(r"(Instruct: )(.*)(\n\s*Query: ?)", re.DOTALL)
"""A prompt with an instruction, as E5-Mistral, GTE-Qwen2 and Qwen3-Embedding have it."""


async def texts_of(service: Service, body: InputFields) -> list[Text]:
    """The texts, or token ids, of a request. Raises InvalidRequestError for a single empty text."""
    if body.messages:
        chat = ChatFields(
            messages=body.messages,
            add_generation_prompt=body.add_generation_prompt,
            chat_template_kwargs=body.chat_template_kwargs,
        )
        return [(await encode_chat(service, chat)).token_ids]
    if body.input == "":
        raise InvalidRequestError("input: must not be empty", "input")
    return as_list(body.input, "input")


def check_number(service: Service, inputs: Sequence[object], param: str) -> None:
    """Raise InvalidRequestError for more inputs than a call may have."""
    most = service.settings.request_limits.max_inputs
    if len(inputs) > most:
        raise InvalidRequestError(f"{param}: at most {most} inputs (max_inputs)", param)


async def tokenize(service: Service, body: EncoderFields, texts: list[Text], param: str) -> list[EncoderInput]:
    """The inputs of all texts. Raises InvalidRequestError for one that is empty or too long."""
    ready = service.ready()
    limit = body.truncate_prompt_tokens
    if (limit is not None and not -1 <= limit <= ready.max_model_len) or limit == 0:
        raise InvalidRequestError(
            f"truncate_prompt_tokens: 1 to {ready.max_model_len}, or -1", "truncate_prompt_tokens"
        )
    reading = _reading(service, body, ready.max_model_len if limit == -1 else limit)

    def work() -> list[EncoderInput]:
        return [reading.input_of(text) for text in texts]

    inputs = await in_thread(work, sum(map(len, texts)))
    for index, one in enumerate(inputs):
        _check(service, one, f"{param}[{index}]" if len(inputs) > 1 else param)
    return inputs


def _check(service: Service, one: EncoderInput, where: str) -> None:
    ready = service.ready()
    if not one.token_ids:
        raise InvalidRequestError(f"{where}: must not be empty", where)
    if max(one.token_ids) >= ready.vocab_size:
        raise InvalidRequestError(f"{where}: token ids are below {ready.vocab_size}", where)
    if len(one.token_ids) > ready.max_model_len:
        raise ContextLengthError(
            f"This model's maximum context length is {ready.max_model_len} tokens. However, {where} has "
            f"{len(one.token_ids)} tokens. Please shorten it, or give truncate_prompt_tokens.",
            where,
        )


@dataclass(frozen=True)
class _Reading:
    """How the texts of one request are read."""

    service: Service
    config: EncoderConfig
    limit: int | None
    """Most tokens of an input; what is longer is cut."""
    adds_special_tokens: bool
    prompt: str = ""
    instruction: str | None = None
    document_limit: int | None = None
    """Most tokens of the second text of a pair."""

    def input_of(self, text: Text) -> EncoderInput:
        """An input as the model's files want it. Token ids are taken as they are."""
        if isinstance(text, list):
            if self.config.task == "token_classify":
                raise UnsupportedError(
                    "input: a model that classifies tokens tells parts of texts, so give it texts", "input"
                )
            return self._tokenizer.encoder_input(text, self.limit)
        if not isinstance(text, str):
            return self._pair(*text)
        return self._text(text.lower() if self.config.lowercases else text)

    @property
    def _tokenizer(self) -> Tokenizer:
        return self.service.tokenizer

    def _text(self, text: str) -> EncoderInput:
        one = self._tokenizer.encoder_input(
            self.prompt + text, self.limit, self.adds_special_tokens, self.config.task == "token_classify"
        )
        if not self.prompt or self.config.modules.includes_prompt:
            return one
        prompt = self._tokenizer.encoder_input(self.prompt, None, self.adds_special_tokens).token_ids
        num_ignored = len(prompt) - (prompt[-1] in self._tokenizer.special_ids)
        return one._replace(num_ignored=min(num_ignored, len(one.token_ids) - 1))

    def _pair(self, first: str, second: str) -> EncoderInput:
        if self.config.lowercases:
            first, second = first.lower(), second.lower()
        if self.document_limit is not None:
            second = self._tokenizer.beginning(second, self.document_limit)
        if self.config.task != "judge":
            return self._tokenizer.encoder_input((first, second), self.limit, self.adds_special_tokens)
        token_ids = self._judged(first, second)
        if self.limit is not None and len(token_ids) > self.limit:  # what is behind the document must stay
            left = len(self._tokenizer.encode(second, False)) - (len(token_ids) - self.limit)
            token_ids = self._judged(first, self._tokenizer.beginning(second, left))
        return EncoderInput(token_ids, [0] * len(token_ids))

    def _judged(self, query: str, document: str) -> list[int]:
        segments = self.service.pair_prompts.write(query, document, self.instruction)
        check_length(self.service, "".join(text for text, _ in segments), "documents")
        return self._tokenizer.encode_segments(segments)


def _reading(service: Service, body: EncoderFields, limit: int | None) -> _Reading:
    """Raises InvalidRequestError for prompts and instructions that the model does not have."""
    config = service.predictor
    assert isinstance(config, EncoderConfig)
    common = service, config, limit, body.add_special_tokens
    if isinstance(body, EmbeddingRequest):
        return _Reading(*common, prompt=_prompt(config, body))
    if not isinstance(body, PairFields):
        return _Reading(*common)
    if body.instruction and config.task != "judge":
        raise UnsupportedError("instruction: this model is not told what is searched for", "instruction")
    prompt = config.prompt if config.task == "embed" else ""
    return _Reading(*common, prompt, body.instruction, body.max_tokens_per_doc)


def _prompt(config: EncoderConfig, body: EmbeddingRequest) -> str:
    """What stands in front of the texts of a request."""
    prompts = dict(config.prompts)
    if body.prompt_name is not None:
        if body.prompt_name not in prompts:
            names = ", ".join(prompts) or "none"
            raise InvalidRequestError(f"prompt_name: the model's files have {names}", "prompt_name")
        return prompts[body.prompt_name]
    if not body.instruction:
        return config.prompt
    found = [match for text in prompts.values() if (match := _INSTRUCTION.fullmatch(text))]
    if not found:
        raise UnsupportedError("instruction: no prompt in the model's files has one", "instruction")
    before, _, behind = found[0].groups()
    return f"{before}{body.instruction}{behind}"
