"""Embeddings of single sentences for 1, 4, 16 and 32 clients: how many a second, and how long one takes.

Each client keeps its connection and sends one sentence after another. The numbers of clients take turns in each round,
so that a slow minute of the machine is everybody's. Arguments behind `--` go to `paceline serve`.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from common import ServerProcess, paceline_serve, print_table, write_result
from embeddings import make_texts


def requests(count: int, host: str) -> list[bytes]:
    """HTTP requests, one sentence each."""
    made = []
    for text in make_texts(count):
        body = json.dumps({"input": text, "encoding_format": "base64"}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        made.append(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return made


async def client(host: str, port: int, todo: Iterator[bytes], seconds: list[float]) -> None:
    """Send what is to do, one request after another, through one connection."""
    reader, writer = await asyncio.open_connection(host, port)
    for request in todo:
        began = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
        seconds.append(time.perf_counter() - began)
    writer.close()


async def load(url: str, clients: int, count: int) -> tuple[float, float]:
    """Requests a second, and the median of milliseconds that one takes."""
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    todo, seconds = iter(requests(count, address.netloc)), list[float]()
    began = time.perf_counter()
    await asyncio.gather(*(client(address.hostname, address.port, todo, seconds) for _ in range(clients)))
    return count / (time.perf_counter() - began), statistics.median(seconds) * 1000


def processor_seconds(server: ServerProcess) -> float:
    """Of all processes of a server so far."""
    parent = psutil.Process(server.process.pid)
    return sum(sum(one.cpu_times()[:2]) for one in (parent, *parent.children(recursive=True)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a sentence-transformers folder")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--count", type=int, default=300, help="sentences of a round, for each number of clients")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("serve", nargs="*", help="more flags of paceline serve")
    args = parser.parse_args()
    found: dict[int, list[tuple[float, float, float]]] = {clients: [] for clients in args.clients}
    with paceline_serve("--model", str(args.model), *args.serve) as server:
        asyncio.run(load(server.url, 32, args.count))  # warms up
        for _ in range(args.rounds):
            for clients, rounds in found.items():
                before = processor_seconds(server)
                rate, milliseconds = asyncio.run(load(server.url, clients, args.count))
                rounds.append((rate, milliseconds, (processor_seconds(server) - before) / args.count * 1000))
    medians = {n: [statistics.median(column) for column in zip(*rounds, strict=True)] for n, rounds in found.items()}
    print_table(
        ("clients", "requests/s", "median ms", "processor ms a request"),
        [(str(clients), *(f"{number:.2f}" for number in numbers)) for clients, numbers in medians.items()],
    )
    write_result(args, {"rounds": found, "medians": medians})


if __name__ == "__main__":
    main()
