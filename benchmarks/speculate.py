"""Drafts: output tokens a second with them and without, by kind of prompt and by clients.

Both ways are the same server's, in turn, and get the same prompts: "speculative": false turns drafts off for a request.
Prompts ask to repeat or edit code, prose and JSON (also with a schema), as agents do; open questions repeat
nothing. Explanations are what `distill.py` has its student or head learn; these ones it has not seen.
Arguments behind `--` go to `paceline serve`.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from functools import partial
from itertools import count, cycle, islice
from typing import Any

import httpx
from common import REPOSITORY, ServerProcess, paceline_serve, print_table, write_result
from distill import prompts as explanations

_LEARNT = 1000
"""Prompts of `distill.py`."""
_LINES = 18
"""Of code or prose in a prompt."""
_QUESTIONS = [
    "Why is the sky blue in the day and red in the evening?",
    "How does a bicycle stay upright while it moves?",
    "Write a short story about a lighthouse and a lost letter.",
    "What should one think of before adopting a dog?",
    "Explain to a child how a plane can fly.",
    "Which are the largest rivers of Europe, and where do they flow?",
    "How is bread made, and why does it rise?",
    "Describe a day in the life of a beekeeper.",
]
_next_number = count(1000).__next__
_RECORD = {
    "type": "object",
    "properties": {"id": {"type": "integer"}, "name": {"type": "string"}, "city": {"type": "string"}},
    "required": ["id", "name", "city"],
    "additionalProperties": False,
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "JSON, schema": {"guided_json": {"type": "array", "items": _RECORD, "minItems": 100}},
}
"""Fields of the requests of a kind."""


def prompts(number: int) -> dict[str, list[str]]:
    """So many of each kind."""
    code = [_piece("app/engine", "*.py", seed) for seed in range(number)]
    prose = [_piece("docs", "*.md", seed) for seed in range(number)]
    records = [_records(seed) for seed in range(number)]
    return {
        "code": [f"Repeat this code exactly, without comments on it:\n\n{piece}" for piece in code],
        "rewriting": [f"Correct the spelling of this text, and change nothing else:\n\n{piece}" for piece in prose],
        "JSON": [f'Add "checked": true to every record of this JSON:\n\n{piece}' for piece in records],
        "JSON, schema": [f"Sort the records of this JSON by name:\n\n{piece}" for piece in records],
        "questions": list(islice(cycle(_QUESTIONS), number)),
        "explanations": explanations(_LEARNT + number)[_LEARNT:],
    }


def _piece(folder: str, pattern: str, seed: int) -> str:
    chance = random.Random(seed)
    lines = chance.choice(sorted((REPOSITORY / folder).glob(pattern))).read_text().splitlines()
    start = chance.randrange(max(1, len(lines) - _LINES))
    return "\n".join(lines[start : start + _LINES])


def _records(seed: int) -> str:
    chance = random.Random(seed)
    names = ["Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana"]
    records = [
        {"id": chance.randrange(10**6), "name": name, "city": chance.choice(["Bern", "Oslo", "Lima", "Kyoto"])}
        for name in chance.sample(names, 6)
    ]
    return json.dumps(records, indent=1)


async def crowd(
    server: ServerProcess, conversation: str, asked: list[str], clients: int, args: argparse.Namespace, **options: Any
) -> tuple[float, list[str]]:
    """Output tokens a second of clients that send one prompt after the other, and the answers."""
    queue, answers = list(enumerate(asked)), [""] * len(asked)
    tokens = 0
    async with httpx.AsyncClient(base_url=server.url, timeout=None, trust_env=False) as http:

        async def client() -> None:
            nonlocal tokens
            while queue:
                index, prompt = queue.pop()
                messages = [{"role": "system", "content": conversation}, {"role": "user", "content": prompt}]
                body = {"messages": messages, "max_tokens": args.output_len, "seed": index}
                body["temperature"] = args.temperature
                answer = (await http.post("/v1/chat/completions", json=body | options)).raise_for_status().json()
                answers[index] = answer["choices"][0]["message"]["content"]
                tokens += answer["usage"]["completion_tokens"]

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return tokens / (time.perf_counter() - began), answers


def measure(
    server: ServerProcess, kind: str, asked: list[str], clients: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Medians of rounds, and what the server counted of drafts.

    Drafts also come from earlier answers to prompts that begin alike. So those of a round begin with its number: it
    can learn from the round's other answers, but not from the same ones.
    """
    rates: dict[bool, list[float]] = {True: [], False: []}
    texts, options = {}, _OPTIONS.get(kind, {"ignore_eos": True})
    ask = partial(crowd, server, asked=asked, clients=clients, args=args)
    for speculative in rates:  # steps are recorded then
        asyncio.run(ask(f"{_next_number()}. You answer.", speculative=speculative, **options))
    names = ("drafts", "draft_tokens", "accepted_tokens")
    before = {name: _counted(server, name) for name in names}
    for _ in range(args.rounds):
        conversation = f"{_next_number()}. You answer."
        asyncio.run(ask(conversation, speculative=False, **options, max_tokens=1))  # fills the prefix cache
        for speculative, of_way in rates.items():
            rate, texts[speculative] = asyncio.run(ask(conversation, speculative=speculative, **options))
            of_way.append(rate)
    drafts, drafted, accepted = (_counted(server, name) - before[name] for name in names)
    without, with_drafts = (statistics.median(rates[speculative]) for speculative in (False, True))
    return {
        "kind": kind,
        "clients": clients,
        "tok_s_without": without,
        "tok_s_with": with_drafts,
        "times": with_drafts / without,
        "steps_with_drafts": drafts,
        "drafted": drafted,
        "accepted": accepted,
        "same_text": texts[True] == texts[False],
    }


def _counted(server: ServerProcess, name: str) -> float:
    line = next(
        line for line in server.metrics().splitlines() if line.startswith(f"paceline_spec_decode_num_{name}_total")
    )
    return float(line.rpartition(" ")[2])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--kinds", nargs="+", default=["code", "rewriting", "JSON", "JSON, schema", "questions"])
    parser.add_argument("--prompts", type=int, default=8, help="of each kind")
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("serve", nargs="*", help="flags of paceline serve")
    args = parser.parse_args()
    asked = prompts(args.prompts)
    with paceline_serve(*args.serve) as server:
        found = [measure(server, kind, asked[kind], clients, args) for kind in args.kinds for clients in args.clients]
    rows = [
        (
            one["kind"], one["clients"], one["tok_s_without"], one["tok_s_with"], one["times"],
            one["accepted"] / max(1, one["drafted"]), 1 + one["accepted"] / max(1, one["steps_with_drafts"]),
            "yes" if one["same_text"] else "no",
        )
        for one in found
    ]  # fmt: skip
    header = (
        "prompts",
        "clients",
        "tok/s without",
        "with",
        "times",
        "drafts right",
        "tokens a draft step",
        "same text",
    )
    print_table(header, rows)
    write_result(args, {"speculation": found}, "draft_model" if "--draft-model" in args.serve else "")


if __name__ == "__main__":
    main()
