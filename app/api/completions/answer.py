"""A completion's answer: texts that continue the prompts, whole or as events."""

from typing import Literal

from ...core.sampling import Logprobs
from ...text.output_processor import TextDelta
from ..edge.answer import AnswerBody, encode_json
from ..edge.request_log import Usage
from ..generation.answer import ChoicesAnswer, Chunk, CompletionUsage, ended_by
from ..generation.choices import Choice
from ..generation.logprobs import finite, num_characters, token_name
from ..generation.prompts import as_list
from ..generation.timings import Timings
from ..service import Service
from .schema import CompletionRequest


class TextLogprobs(AnswerBody):
    """Token by token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    def extend(self, more: "TextLogprobs") -> None:
        """Append those of later tokens."""
        self.tokens += more.tokens
        self.token_logprobs += more.token_logprobs
        self.top_logprobs += more.top_logprobs
        self.text_offset += more.text_offset


class TextChoice(AnswerBody):
    """One of the texts, or in an event what is new of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    """None while the text continues."""
    stop_reason: str | int | None = None
    """The stop string, or stop token, that ended it."""

    def take_ending(self, delta: TextDelta) -> None:
        """Set how the text has ended, if it has."""
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = ended_by(delta), delta.stop_reason


class Completion(AnswerBody, kw_only=True):
    """Texts that continue the prompts."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: CompletionUsage
    timings: Timings


class CompletionChunk(Chunk, kw_only=True):
    """What is new of the texts that continue the prompts."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]


class _ChoiceWriter:
    """Writes the text of a choice, and its logprobs with their offsets in the text."""

    def __init__(self, service: Service, body: CompletionRequest, prompt: list[int], text: str | None) -> None:
        """`prompt`: the tokens of `text`, which is None if the client gave the tokens themselves."""
        self._tokenizer = service.tokenizer
        self._wants_logprobs = body.logprobs is not None
        self._offset = 0
        self._echo = prompt if body.echo else []
        self._echo_text = text or "" if body.echo else ""
        if self._echo and text is None:
            self._echo_text = service.tokenizer.decode(prompt, skip_special_tokens=False)
        self._echo_logprobs: list[Logprobs] = []

    def write(self, delta: TextDelta) -> tuple[str, TextLogprobs | None]:
        """The text and logprobs to send for a delta."""
        text, tokens = delta.text, delta.logprobs
        self._echo_logprobs += delta.prompt_logprobs
        if self._echo:
            if not (delta.token_ids or delta.finish_reason):  # the engine still computes the prompt
                return "", None
            text = self._echo_text + text
            first = Logprobs(self._echo[:1], [])  # the first token has no prediction
            tokens = [first, *self._echo_logprobs, *tokens] if self._wants_logprobs else []
            self._echo = []
        return text, self._logprobs(tokens) if self._wants_logprobs else None

    def _logprobs(self, tokens: list[Logprobs]) -> TextLogprobs:
        result = TextLogprobs([], [], [], [])
        for token in tokens:
            values = [self._tokenizer.token_bytes(id_) for id_ in token.token_ids]
            logprobs = [finite(logprob) for logprob in token.logprobs]
            result.tokens.append(token_name(values[0]))
            result.token_logprobs.append(logprobs[0] if logprobs else None)
            result.top_logprobs.append(_by_name(values, logprobs) if logprobs else None)
            result.text_offset.append(self._offset)
            self._offset += self._num_characters(token.token_ids[0], values[0])
        return result

    def _num_characters(self, token_id: int, value: bytes) -> int:
        """How many characters of the text a token takes: none, if the tokenizer put it around the prompt."""
        is_added = token_id in self._tokenizer.special_ids and not self._echo_text.startswith(
            value.decode(errors="replace"), self._offset
        )
        return 0 if is_added else num_characters(value)


def _by_name(values: list[bytes], logprobs: list[float]) -> dict[str, float]:
    """Logprobs by the names of tokens; the higher one if two tokens have the same name."""
    result: dict[str, float] = {}
    for value, logprob in zip(values, logprobs, strict=True):
        name = token_name(value)
        result[name] = max(logprob, result.get(name, logprob))
    return result


class TextAnswer(ChoicesAnswer):
    """Texts that continue the prompts."""

    def __init__(self, service: Service, body: CompletionRequest, choices: list[Choice], request_id: str) -> None:
        super().__init__(service, body, f"cmpl-{request_id}", CompletionChunk, len(choices))
        texts = [text for text in as_list(body.prompt, "prompt") for _ in range(body.n)]
        self._writers = [
            _ChoiceWriter(service, body, choice.prompt_token_ids, text if isinstance(text, str) else None)
            for choice, text in zip(choices, texts, strict=True)
        ]
        self._texts: list[list[str]] = [[] for _ in choices]
        self._choices = [TextChoice(index, "") for index in range(len(choices))]
        self._frames: list[tuple[bytes, bytes]] = []
        """For each choice, the bytes of an event before and after its text."""

    def take(self, index: int, delta: TextDelta) -> None:
        """See `Answer`."""
        text, logprobs = self._writers[index].write(delta)
        self._texts[index].append(text)
        choice = self._choices[index]
        choice.take_ending(delta)
        if logprobs and choice.logprobs:
            choice.logprobs.extend(logprobs)
        elif logprobs:
            choice.logprobs = logprobs

    def body(self, usage: Usage) -> Completion:
        """See `Answer`."""
        for choice, texts in zip(self._choices, self._texts, strict=True):
            choice.text = "".join(texts)
        return Completion(
            **self._head, choices=self._choices, usage=CompletionUsage.of(usage), timings=Timings.of(usage)
        )

    def first_events(self) -> list[bytes]:
        """See `Answer`."""
        self._frames = [self.split_event(choice) for choice in self._choices]
        return []

    def events(self, index: int, delta: TextDelta) -> list[bytes]:
        """See `Answer`."""
        text, logprobs = self._writers[index].write(delta)
        if delta.finish_reason is not None or logprobs is not None or (self._counts_always and delta.token_ids):
            choice = TextChoice(index, text, logprobs)
            choice.take_ending(delta)
            return [self.choice_event(choice) if delta.finish_reason is None else self.ending_event(choice)]
        if not delta.token_ids:
            return []
        head, tail = self._frames[index]
        return [head + encode_json(text) + tail]
