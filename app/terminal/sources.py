"""Who answers a chat in the terminal. The other one is in `own_engine.py`."""

import json
from collections.abc import Generator
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import httpx

from ..errors import ApiError, EngineUnavailableError, StartupError

_CONNECT_SECONDS = 10
Messages = list[dict[str, Any]]


class Delta(NamedTuple):
    """What is new of an answer."""

    text: str = ""
    reasoning: str = ""
    num_tokens: int = 0
    """Tokens since the last delta with a number of tokens: a server tells it once, at the end."""


class Source(Protocol):
    """Who answers."""

    name: str
    """Of the model."""

    def answer(self, messages: Messages, fields: dict[str, Any]) -> Generator[Delta, None, None]:
        """The answer to a chat as it comes. Closing the iterator ends the work. Raises ApiError."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Server:
    """A server with OpenAI's API."""

    def __init__(self, url: str, api_key: str | None, model: str | None) -> None:
        """`model`: of those that the server has; None: its first. Raises StartupError if the server does not answer."""
        url = url if "://" in url else f"http://{url}"
        self._url = f"{url.rstrip('/').removesuffix('/v1')}/v1"
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)  # a model may think for long
        self._client = httpx.Client(headers=headers, timeout=timeout)
        self.name = model or self._first_model()

    def _first_model(self) -> str:
        try:
            answer = self._client.get(f"{self._url}/models", timeout=_CONNECT_SECONDS)
            _check(answer)
            return str(answer.json()["data"][0]["id"])
        except ApiError as error:
            hint = "; give a key by --api-key or PACELINE_API_KEY" if error.status == 401 else ""
            raise StartupError(f"{self._url} answers {error.status}: {error.message}{hint}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise StartupError(f"{self._url} does not answer: {error}") from None
        except (ValueError, LookupError, TypeError):
            raise StartupError(f"{self._url}/models does not list models as OpenAI's API does") from None

    def answer(self, messages: Messages, fields: dict[str, Any]) -> Generator[Delta, None, None]:
        """See `Source`."""
        wishes = {"stream": True, "stream_options": {"include_usage": True}}
        body = {"model": self.name, "messages": messages, **wishes, **fields}
        try:
            with self._client.stream("POST", f"{self._url}/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    answer.read()
                _check(answer)
                for line in answer.iter_lines():
                    if line.startswith("data:") and (data := line.removeprefix("data:").strip()) != "[DONE]":
                        yield _read(data)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EngineUnavailableError(f"the connection broke: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()


def _read(data: str) -> Delta:
    """What an event says. Raises ApiError."""
    try:
        return _delta(json.loads(data))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ApiError(f"the server does not stream as OpenAI's API does: {data:.80}") from None


def _delta(event: dict[str, Any]) -> Delta:
    if "error" in event:
        raise _error(500, event)
    (choice,) = event["choices"] or [{}]
    new, usage = choice.get("delta") or {}, event.get("usage") or {}
    reasoning = new.get("reasoning_content") or new.get("reasoning") or ""
    return Delta(str(new.get("content") or ""), str(reasoning), int(usage.get("completion_tokens", 0)))


def _check(answer: httpx.Response) -> None:
    """Raise the ApiError that an answer is."""
    if answer.status_code == 200:
        return
    try:
        raise _error(answer.status_code, answer.json())
    except ValueError:
        raise ApiError.of(answer.status_code, answer.text[:200] or answer.reason_phrase, None, None) from None


def _error(status: int, body: Any) -> ApiError:
    told = body.get("error") if isinstance(body, dict) else None
    details = told if isinstance(told, dict) else {"message": str(told or body)}
    return ApiError.of(status, str(details.get("message")), details.get("param"), details.get("code"))
