"""A completion's answer: texts that continue the prompts, whole or as events."""

from typing import Any

from app.api.completions.schema import CompletionRequest
from app.api.edge.sse import encode_json
from app.api.generation.answer import ChoicesAnswer
from app.api.generation.choices import Choice
from app.api.generation.logprobs import finite, num_characters, token_name
from app.api.service import Service
from app.core.sampling import Logprobs
from app.text.output_processor import TextDelta

_EVENT_TAIL = b',"logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n'


class _ChoiceWriter:
    """Puts a choice's news into the form of the API: text, and logprobs with their places in the text."""

    def __init__(self, service: Service, body: CompletionRequest, prompt: list[int]) -> None:
        self._tokenizer = service.tokenizer
        self._wants_logprobs = body.logprobs is not None
        self._offset = 0
        self._echo = list(prompt) if body.echo else []
        self._echo_logprobs: list[Logprobs] = []

    def write(self, delta: TextDelta) -> tuple[str, dict[str, Any] | None]:
        """The text and logprobs to send for a delta."""
        text, tokens = delta.text, delta.logprobs
        self._echo_logprobs += delta.prompt_logprobs
        if self._echo:
            if not (delta.token_ids or delta.finish_reason):  # the prompt is still being computed
                return "", None
            text = self._tokenizer.decode(self._echo, skip_special_tokens=False) + text
            first = Logprobs(self._echo[:1], [])  # nothing predicts a text's first token
            tokens = [first, *self._echo_logprobs, *tokens] if self._wants_logprobs else []
            self._echo = []
        return text, self._logprobs(tokens) if self._wants_logprobs else None

    def _logprobs(self, tokens: list[Logprobs]) -> dict[str, Any]:
        result: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            values = [self._tokenizer.token_bytes(id_) for id_ in token.token_ids]
            logprobs = [finite(logprob) for logprob in token.logprobs]
            result["tokens"].append(token_name(values[0]))
            result["token_logprobs"].append(logprobs[0] if logprobs else None)
            result["top_logprobs"].append(_by_name(values, logprobs) if logprobs else None)
            result["text_offset"].append(self._offset)
            self._offset += num_characters(values[0])
        return result


def _by_name(values: list[bytes], logprobs: list[float]) -> dict[str, float]:
    """Logprobs by the tokens' names; the higher one where two tokens have the same."""
    result: dict[str, float] = {}
    for value, logprob in zip(values, logprobs, strict=True):
        name = token_name(value)
        result[name] = max(logprob, result.get(name, logprob))
    return result


class TextAnswer(ChoicesAnswer):
    """Texts that continue the prompts."""

    def __init__(self, service: Service, body: CompletionRequest, choices: list[Choice], request_id: str) -> None:
        super().__init__(service, body, {"id": f"cmpl-{request_id}", "object": "text_completion"})
        self._writers = [_ChoiceWriter(service, body, choice.prompt_token_ids) for choice in choices]
        self._texts: list[list[str]] = [[] for _ in choices]
        self._choices = [_choice(index, "", None) for index in range(len(choices))]
        self._event_heads: list[bytes] = []

    def take(self, index: int, delta: TextDelta) -> None:
        """See `Answer`."""
        text, logprobs = self._writers[index].write(delta)
        self._texts[index].append(text)
        choice = self._choices[index]
        choice["finish_reason"], choice["stop_reason"] = delta.finish_reason, delta.stop_reason
        if logprobs and choice["logprobs"]:
            for name, values in logprobs.items():
                choice["logprobs"][name] += values
        elif logprobs:
            choice["logprobs"] = logprobs

    def choices(self) -> list[dict[str, Any]]:
        """See `Answer`."""
        return [choice | {"text": "".join(texts)} for choice, texts in zip(self._choices, self._texts, strict=True)]

    def first_events(self) -> list[bytes]:
        """See `Answer`."""
        self._event_heads = [self.event_head({"index": index, "text": ""}) for index in range(len(self._choices))]
        return []

    def events(self, index: int, delta: TextDelta) -> list[bytes]:
        """See `Answer`."""
        text, logprobs = self._writers[index].write(delta)
        if delta.finish_reason is not None or logprobs is not None or (self._counts_always and delta.token_ids):
            return [self.choice_event(_choice(index, text, logprobs, delta))]
        return [self._event_heads[index] + encode_json(text) + _EVENT_TAIL] if delta.token_ids else []


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, delta: TextDelta | None = None) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": delta.finish_reason if delta else None,
        "stop_reason": delta.stop_reason if delta else None,
    }
