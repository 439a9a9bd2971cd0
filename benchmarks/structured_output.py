"""The cost of a JSON schema: output tokens per second of many clients with it, compared with the same clients without.

All requests have the same length: the schema's array is longer than the output, and the end of free text is put off.
Within each round one follows the other on the same server. Arguments behind `--` go to `paceline serve`.
"""

import argparse
import asyncio
import statistics
import time
from typing import Any

import httpx
from common import paceline_serve, print_table, write_result

SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    },
}
FORMS: dict[str, dict[str, Any]] = {"free": {"ignore_eos": True}, "schema": {"guided_json": SCHEMA}}


async def crowd(url: str, form: dict[str, Any], args: argparse.Namespace) -> float:
    """Output tokens a second of all requests together, which start at once."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False) as http:

        async def one(seed: int) -> int:
            body = {"prompt": f"People, as JSON ({seed}): ", "seed": seed, "temperature": args.temperature, **form}
            answer = await http.post("/v1/completions", json=body | {"max_tokens": args.output_len})
            return int(answer.raise_for_status().json()["usage"]["completion_tokens"])

        began = time.perf_counter()
        tokens = sum(await asyncio.gather(*map(one, range(args.concurrency))))
        return tokens / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("serve", nargs="*", help="flags of paceline serve")
    args = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in FORMS}
    with paceline_serve(*args.serve) as server:
        for form in FORMS.values():  # compiles the grammar, among other things that are done once
            asyncio.run(crowd(server.url, form, args))
        for _ in range(args.rounds):
            for name, form in FORMS.items():
                rates[name].append(asyncio.run(crowd(server.url, form, args)))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    overhead = medians["free"] / medians["schema"] - 1
    print_table(("free tok/s", "with a schema tok/s", "overhead"), [(*medians.values(), f"{overhead:.1%}")])
    write_result(args, {"tok_s": rates, "medians": medians, "overhead": overhead})


if __name__ == "__main__":
    main()
