"""Clients that load a service of several replicas and record what they notice."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.patience import PATIENCE

CLIENTS = 8
PAUSE = 0.05
"""Seconds of a client between two answers, which leave a processor to a replica that starts."""


class Load:
    """Clients that stream one answer after the other, until they are told to stop; what they got."""

    def __init__(self, url: str, headers: dict[str, str] | None = None, clients: int = CLIENTS) -> None:
        self._url, self._headers = url, headers
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        self.whole, self.problems = 0, list[str]()
        self._clients = [self._pool.submit(self._run, index) for index in range(clients)]

    def _run(self, index: int) -> None:
        body = {"prompt": f"{index}:", "max_tokens": 20, "ignore_eos": True, "stream": True}
        with httpx.Client(timeout=PATIENCE, headers=self._headers) as http:
            while not self._stop.wait(PAUSE):
                try:
                    answer = http.post(f"{self._url}/v1/completions", json=body)
                except httpx.HTTPError as error:
                    self.problems.append(repr(error))
                    continue
                events = re.findall(r"data: (.*)\n\n", answer.text)
                if answer.status_code == 200 and events[-1] == "[DONE]" and "error" not in json.loads(events[-2]):
                    self.whole += 1
                else:
                    self.problems.append(f"{answer.status_code} {answer.text[-300:]}")

    def stop(self) -> None:
        self._stop.set()
        for client in self._clients:
            client.result()
        self._pool.shutdown()
