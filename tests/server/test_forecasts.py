"""A server with Chronos: forecasts are those of its published algorithm."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from transformers import PreTrainedModel

from app import check_model
from tests import web
from tests.models.chronos import Published, write_chronos
from tests.server.examples import check_examples
from tests.server.process import Server, running_server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chronos")


@pytest.fixture(scope="module")
def chronos(folder: Path) -> Iterator[tuple[Server, PreTrainedModel]]:
    model = write_chronos(folder)
    flags = ("--dtype", "float32", "--cpu-threads", "1", "--max-num-seqs", "16", "--max-num-batched-tokens", "128")
    flags += ("--max-queue", "60")  # less than the paths of one series
    with running_server("--model", str(folder), *flags) as server:
        yield server, model


def post(server: Server, **body: Any) -> Any:
    answer = server.post("/v1/forecast", body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_floods_of_numbers_are_refused_at_once(chronos: tuple[Server, PreTrainedModel]) -> None:
    server = chronos[0]
    process = psutil.Process(server.process.pid)
    processes = [process, *process.children(recursive=True)]
    before = sum(sum(one.cpu_times()[:2]) for one in processes)
    for text, count in ((b"0", 10_000_000), (b"1.5", 2_500_000), (b"-1e999", 100_000), (b"NaN", 10), (b"[1]", 1 << 20)):
        body = b'{"series": [[' + b",".join([text] * count) + b"]]}"
        answer = web.post(f"{server.url}/v1/forecast", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 413)
    assert sum(sum(one.cpu_times()[:2]) for one in processes) - before < 5  # all together
    assert sum(one.memory_info().rss for one in processes) < 2 * 2**30


def test_the_most_probable_paths_of_a_crowd_are_those_of_transformers(chronos: tuple[Server, PreTrainedModel]) -> None:
    """Of series with gaps in front, within, and at the end; too long ones; and over horizons of several passes."""
    server, model = chronos
    rng, published = np.random.default_rng(1), Published(model)
    requests: list[tuple[list[list[float | None]], int]] = []
    for client in range(8):
        series: list[list[float | None]] = [
            list((rng.standard_normal(int(rng.integers(1, 90))).cumsum() * 10.0**client).tolist())
            for _ in range(1 + client % 3)
        ]
        series[0][: client // 3] = [None] * (client // 3)
        for at in rng.integers(0, len(series[-1]), client):
            series[-1][at] = None
        series[-1].append(1.0)
        requests.append((series, 1 + client * 8))
    requests[0][0].append([0.0, None, 0, None])

    def ask(request: tuple[list[list[float | None]], int]) -> Any:
        return post(server, series=request[0], horizon=request[1], top_k=1, num_samples=3)

    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(ask, requests))
    seen = set()
    for (given, horizon), answer in zip(requests, answers, strict=True):
        for one, found in zip(given, answer["data"], strict=True):
            (expected,) = published.paths(one, horizon).numpy()
            seen.add(tuple(np.round(expected / np.abs(expected).max(), 3).tolist()))
            for name in ("mean", "median"):
                np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
            assert found["quantiles"]["0.9"] == found["median"]
    assert len(seen) > 10  # of 15


def test_quantiles_are_those_of_the_paths(chronos: tuple[Server, PreTrainedModel]) -> None:
    server, model = chronos
    series: list[float | None] = [3.0, 1.0, None, None, 4.0, 1.0, 5.0, None]
    asked: dict[str, Any] = {"horizon": 1, "num_samples": 128, "quantiles": [0.01, 0.25, 0.5, 0.75]}
    answers = [post(server, series=[series, [7.0]], seed=seed, **asked)["data"] for seed in range(6)]
    again = post(server, series=[[1.0, 2.0], series], seed=3, **asked)["data"]
    assert again[1]["quantiles"] == answers[3][0]["quantiles"]  # whatever is beside it
    assert len({answer[0]["mean"][0] for answer in answers}) > 1
    values, probabilities = Published(model).first(series)
    mean = np.mean([answer[0]["mean"][0] for answer in answers])
    variance = probabilities @ values**2 - (probabilities @ values) ** 2
    assert abs(mean - probabilities @ values) < 4 * (variance / (6 * 128)) ** 0.5
    for name, quantile in (("0.25", 0.25), ("0.75", 0.75)):
        for answer in answers:
            found = answer[0]["quantiles"][name][0]
            # So many paths are below the number that was found, and so many are not above it, but for 4.5 deviations.
            below, up_to = (probabilities[choose].sum() for choose in (values < found - 1e-6, values < found + 1e-6))
            assert below - 0.17 < quantile < up_to + 0.17
    usage = post(server, series=[series], horizon=2)["usage"]
    assert usage == {"prompt_tokens": 9, "total_tokens": 9 + 2 * 20}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"series": [[1], [None, None]]}, "series[1]", "must have a number among its last 60"),
        ({"series": [[1, *[None] * 60]]}, "series[0]", "must have a number among its last 60"),
        ({"series": [[[1], [2]]]}, "series[0]", "reads 1 channels, and the series has 2"),
        ({"series": [[1e39]]}, "series[0]", "at most 3.40e+38"),
        ({"series": [[3e38]]}, "series[0]", "no finite forecast"),
        ({"series": [[1]], "horizon": 61}, "horizon", "at most 60"),
        ({"series": [[1]], "quantiles": [1]}, "quantiles", "between 0 and 1"),
        ({"series": [[1]], "num_samples": 129}, "num_samples", "at most 128"),
        ({"series": [[1]] * 256, "num_samples": 128, "horizon": 60}, "horizon", "max_numbers"),
        ({"series": [[1]], "frequency": "fortnight"}, "frequency", "'fortnight' is none"),
    ],
)
def test_what_is_wrong_is_named(
    chronos: tuple[Server, PreTrainedModel], body: Any, param: str | None, message: str
) -> None:
    answer = chronos[0].post("/v1/forecast", body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


def test_examples(chronos: tuple[Server, PreTrainedModel]) -> None:
    check_examples(chronos[0].url, "docs/forecasting.md: Forecasting", "docs/forecasting.md: Chronos")


def test_what_the_service_and_check_model_say_of_it(chronos: tuple[Server, PreTrainedModel], folder: Path) -> None:
    server, _ = chronos
    (model,) = server.get("/v1/models").json()["data"]
    assert (model["tasks"], model["input_modalities"]) == (["forecast"], [])
    assert server.get("/health?deep=true").status_code == 200
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/tokenize", {"prompt": "a"})):
        answer = server.post(path, body)
        assert answer.status_code == 400
        assert "this model forecasts series of numbers" in answer.json()["error"]["message"]
    assert check_model.check(str(folder))
