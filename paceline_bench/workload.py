"""What a load test sends, and when. Both are a pure function of the seed."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

Endpoint = Literal["completions", "chat"]

PATHS: dict[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}

_TOKEN_IDS = range(100, 32_000)
"""Token ids of prompts: above the special tokens of most vocabularies, below the end of nearly every vocabulary."""
_WORDS = ("time", "year", "people", "way", "day", "man", "woman", "life", "child", "world", "school", "state", "home")
"""Words that most tokenizers know as one token."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One load to measure: a closed loop if `concurrency` is set, else an open loop with `rate`.

    It ends after `num_requests` or `duration`, whichever is first; at least one of them is set.
    """

    concurrency: int | None = None
    """Requests in flight at any time; the end of each starts the next."""
    rate: float | None = None
    """Mean arrivals per second, whatever the server does; the gaps are exponential (a Poisson process)."""
    num_requests: int | None = None
    duration: float | None = None
    """Seconds in which requests are started; those in flight then are waited for."""
    model: str | None = None
    """None for the first model that the server lists."""
    endpoint: Endpoint = "completions"
    input_len: int = 128
    output_len: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise ValueError("a workload has either a concurrency or a rate")
        if self.num_requests is None and self.duration is None:
            raise ValueError("a workload ends after num_requests or duration")

    @property
    def label(self) -> str:
        """A description of the load."""
        return f"concurrency {self.concurrency}" if self.rate is None else f"{self.rate:g} requests/s"

    @property
    def path(self) -> str:
        """The path of the endpoint."""
        return PATHS[self.endpoint]

    def indices(self) -> Iterator[int]:
        """Numbers of the requests; endless without `num_requests`."""
        return itertools.count() if self.num_requests is None else iter(range(self.num_requests))

    def arrivals(self) -> Iterator[float]:
        """When an open loop starts each request: seconds after its begin, rising."""
        assert self.rate is not None
        rng = self._rng("arrivals")
        offset = 0.0
        for _ in self.indices():
            offset += rng.expovariate(self.rate)
            if self.duration is not None and offset >= self.duration:
                return
            yield offset

    def body(self, index: int) -> bytes:
        """JSON of request number `index`. Other loads of a sweep send other prompts, so no prefix cache helps them."""
        rng = self._rng(str(index))
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.output_len,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.endpoint == "completions":
            body["prompt"] = rng.choices(_TOKEN_IDS, k=self.input_len)
        else:
            body["messages"] = [{"role": "user", "content": " ".join(rng.choices(_WORDS, k=self.input_len))}]
        return msgspec.json.encode(body)

    def _rng(self, use: str) -> random.Random:
        return random.Random(f"{self.seed}:{self.label}:{use}")
