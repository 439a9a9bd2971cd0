"""Does any stream change or break when engines die? Clients stream while the engine is killed at random moments.

Every answer must equal the answer to the same request before the first kill: text, tokens and finish reason. Requests
differ in what they ask of the engine: greedy and seeded, penalties, logprobs, grammars, several choices, whole answers.
While an engine starts, new requests get 503 and are tried again; a stream that has begun may only pause. With few
clients, their steps have drafts.

Requests whose answers differ without any kill are left out: two of their tokens are so close that rounding, which
depends on the rest of the batch, decides between them. Exits with 1 if any other answer differs.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import httpx
import psutil
from common import ServerProcess, paceline_serve, print_table, write_result

_SCREENINGS = 3
_SHARE_OF_STARTS = 0.15
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
_KINDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 40},
    {"temperature": 1.0, "frequency_penalty": 0.7, "presence_penalty": 0.3, "repetition_penalty": 1.1},
    {"temperature": 0.7, "logprobs": 3},
    {"temperature": 0.9, "n": 2},
    {"temperature": 0, "echo": True, "logprobs": 1},
    {"temperature": 1.0, "guided_json": _SCHEMA},
    {"temperature": 0.5, "stream": False},
]


def _bodies(count: int, tokens: int) -> list[dict[str, Any]]:
    """Requests, no two of them equal."""
    return [
        {
            "prompt": f"Tale number {index}: once upon a time there was",
            "max_tokens": tokens,
            "seed": index,
            "stream": True,
            "ignore_eos": "guided_json" not in kind,
            **kind,
        }
        for index in range(count)
        for kind in (_KINDS[index % len(_KINDS)],)
    ]


class Clients:
    """All that ask, and what they saw."""

    def __init__(self, http: httpx.AsyncClient, url: str, bodies: list[dict[str, Any]]) -> None:
        self._http = http
        self._url = f"{url}/v1/completions"
        self._bodies = bodies
        self.seen: Counter[str] = Counter()

    async def undisturbed(self) -> list[Any]:
        """What each request gets while nothing happens; None if that is not always the same."""
        first, *others = [await asyncio.gather(*map(self.answer, self._bodies)) for _ in range(_SCREENINGS)]
        answers = [
            answer if all(other[index] == answer for other in others) else None for index, answer in enumerate(first)
        ]
        self.seen["left out"] = answers.count(None)
        return answers

    async def run(self, index: int, expected: Any, stop: asyncio.Event) -> None:
        """One client: the same request again and again."""
        while not stop.is_set():
            try:
                answer = await self.answer(self._bodies[index])
            except (httpx.HTTPError, ValueError) as error:
                self.seen["broken"] += 1
                print(f"request {index}: {error!r}", file=sys.stderr)
                continue
            self.seen["equal" if answer == expected else "different"] += 1
            if answer != expected:
                print(f"request {index}:\n{expected}\n{answer}", file=sys.stderr)

    async def answer(self, body: dict[str, Any]) -> dict[int, tuple[str, str, Any]]:
        """Choice to text, finish reason, and logprobs' tokens. Raises ValueError for an error event."""
        while True:
            async with self._http.stream("POST", self._url, json=body) as response:
                if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                    self.seen["refused, tried again"] += 1
                    await asyncio.sleep(0.2)
                    continue
                text = (await response.aread()).decode()
            response.raise_for_status()
            return _choices(text) if body["stream"] else _merged([json.loads(text)])


def _choices(events: str) -> dict[int, tuple[str, str, Any]]:
    data = [line.removeprefix("data: ") for line in events.splitlines() if line.startswith("data: ")]
    if data[-1] != "[DONE]":
        raise ValueError("the stream has no end")
    return _merged([json.loads(item) for item in data[:-1]])


def _merged(parts: list[Any]) -> dict[int, tuple[str, str, Any]]:
    merged: dict[int, tuple[str, str, Any]] = {}
    for part in parts:
        if "error" in part:
            raise ValueError(part["error"]["message"])
        for choice in part["choices"]:
            text, _, tokens = merged.get(choice["index"], ("", "", []))
            tokens = tokens + (choice["logprobs"] or {}).get("tokens", [])
            merged[choice["index"]] = text + choice["text"], choice["finish_reason"], tokens
    return merged


async def _tokens(server: ServerProcess, http: httpx.AsyncClient) -> str:
    """What all clients have got so far, as the metrics say it."""
    text = (await http.get(f"{server.url}/metrics")).text
    return text.partition("\npaceline_generation_tokens_total ")[2].partition("\n")[0]


async def _kill(server: ServerProcess, http: httpx.AsyncClient, kills: int, dice: random.Random) -> None:
    """Kill the engine at random moments: mostly while it works, sometimes while it starts.

    While it works means that it has given some token: requests that an engine dies under again and again, before they
    got anything, are to be suspected of it.
    """
    for _ in range(kills):
        if dice.random() < _SHARE_OF_STARTS:
            await asyncio.sleep(dice.uniform(0.0, 2.0))
        else:
            before = await _tokens(server, http)
            while await _tokens(server, http) == before:
                await asyncio.sleep(0.02)
            await asyncio.sleep(dice.uniform(0.0, 1.5))
        for child in psutil.Process(server.process.pid).children():
            with suppress(psutil.Error):  # the last one may be dying still
                if "app.engine.server" in child.cmdline():
                    child.kill()


async def _measure(server: ServerProcess, args: argparse.Namespace) -> Counter[str]:
    bodies = _bodies(args.clients, args.tokens)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as http:
        clients, stop = Clients(http, server.url, bodies), asyncio.Event()
        expected = await clients.undisturbed()
        tasks = [
            asyncio.create_task(clients.run(index, answer, stop))
            for index, answer in enumerate(expected)
            if answer is not None
        ]
        await _kill(server, http, args.kills, random.Random(args.seed))
        stop.set()
        await asyncio.gather(*tasks)
        metrics = (await http.get(f"{server.url}/metrics")).text
    accepted = metrics.partition("\npaceline_spec_decode_num_accepted_tokens_total")[2].partition("\n")[0]
    clients.seen["drafts that were right"] = int(float(accepted.rpartition(" ")[2]))
    return clients.seen


def main() -> None:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=60, help="of each answer")
    parser.add_argument("--seed", type=int, default=time.time_ns(), help="of the moments")
    parser.add_argument("--no-result", action="store_true", help="leave results/ as it is: for tests")
    parser.add_argument("serve", nargs="*", help="more flags of paceline serve")
    args = parser.parse_args()
    # float32: what a token's probabilities are must not depend on which others are computed beside it.
    with paceline_serve("--dtype", "float32", "--max-model-len", "1024", *args.serve) as server:
        seen = asyncio.run(_measure(server, args))
    print_table(("answers", "number"), sorted(seen.items()))
    if not args.no_result:
        write_result(args, {"answers": dict(seen)})
    sys.exit(not seen["equal"] or bool(seen["different"] or seen["broken"]))


if __name__ == "__main__":
    main()
