"""A forecaster in a real process behind a real socket."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from tests import web
from tests.server.examples import check_examples
from tests.server.process import Server, running_server
from tests.worker.test_forecaster import write_forecaster


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Any]]:
    folder = tmp_path_factory.mktemp("timesfm")
    oracle = write_forecaster(folder, "TimesFmModelForPrediction")
    with running_server("--model", str(folder), "--request-limits", '{"max_inputs": 400}') as server:
        yield server, oracle


def post(server: Server, body: Any) -> Any:
    answer = web.post(f"{server.url}/v1/forecast", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@torch.inference_mode()
def test_a_crowd_gets_the_forecasts_of_transformers(served: tuple[Server, Any]) -> None:
    server, oracle = served
    rng = np.random.default_rng(1)
    requests = [
        [(rng.standard_normal(int(rng.integers(1, 120))).cumsum() * 10).tolist() for _ in range(1 + client % 3)]
        for client in range(24)
    ]
    requests[5][0] = [None, *requests[5][0], None]
    with ThreadPoolExecutor(len(requests)) as pool:
        bodies = [{"series": series, "frequency": "ME"} for series in requests]
        answers = list(pool.map(lambda body: post(server, body), bodies))
    for series, answer in zip(requests, answers, strict=True):
        assert [one["index"] for one in answer["data"]] == list(range(len(series)))
        for given, found in zip(series, answer["data"], strict=True):
            past = [*given[1:-1], given[-2]] if given[0] is None else given
            expected = oracle(past_values=[torch.tensor(past)], freq=[1]).full_predictions[0].numpy()
            tolerance = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(found["mean"], expected[:, 0], rtol=1e-5, atol=tolerance)
            np.testing.assert_allclose(found["median"], expected[:, 5], rtol=1e-5, atol=tolerance)
            assert list(found["quantiles"]) == [f"0.{number}" for number in range(1, 10)]
            np.testing.assert_allclose(found["quantiles"]["0.9"], expected[:, 9], rtol=1e-5, atol=tolerance)
    assert answers[0]["usage"]["total_tokens"] == min(8, -(-len(requests[0][0]) // 8))
    short = post(server, {"series": [[1, 2, 3]], "horizon": 40, "quantiles": [0.5]})["data"][0]
    assert (len(short["mean"]), list(short["quantiles"])) == (40, ["0.5"])


def test_examples(served: tuple[Server, Any]) -> None:
    check_examples(served[0].url, "docs/forecasting.md: Forecasting")


def test_what_the_service_says_of_it(served: tuple[Server, Any]) -> None:
    server, _ = served
    (model,) = server.get("/v1/models").json()["data"]
    assert (model["tasks"], model["max_model_len"]) == (["forecast"], 8)
    assert server.get("/health?deep=true").status_code == 200
    for path, body in (
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/classify", {"input": "a"}),
        ("/v1/completions", {"prompt": "a"}),
        ("/tokenize", {"prompt": "a"}),
    ):
        answer = server.post(path, body)
        assert answer.status_code == 400
        assert "this model forecasts series of numbers" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"series": []}, "series", "at least 1"),
        ({"series": [1, 2, 3]}, "series[0]", "must be a list of numbers"),
        ({"series": [[1], []]}, "series[1]", "must be a list of numbers"),
        ({"series": [[1, "2"]]}, "series[0]", "must be a number or null"),
        ({"series": [[True]]}, "series[0]", "must be a number or null"),
        ({"series": [[1], [None, None]]}, "series[1]", "must have a number"),
        ({"series": [[[1], [2]]]}, "series[0]", "reads 1 channels, and the series has 2"),
        ({"series": [[[1], [2, 3]]]}, "series[0]", "the same length"),
        ({"series": [[1e39]]}, "series[0]", "at most 3.40e+38"),
        ({"series": [[10**400]]}, "series[0]", "too large"),
        ({"series": [[1e30, -1e30, 3e30]]}, "series[0]", "no finite forecast"),
        ({"series": [[1]], "horizon": 65}, "horizon", "at most 64"),
        ({"series": [[1]], "horizon": 0}, "horizon", "greater than or equal to 1"),
        ({"series": [[1]], "horizon": 10**30}, "horizon", "less than"),
        ({"series": [[1]], "quantiles": [0.55]}, "quantiles", "forecasts 0.1, 0.2"),
        ({"series": [[1]], "frequency": "fortnight"}, "frequency", "'fortnight' is none"),
        ({"series": [[1]] * 401}, "series", "at most 400 inputs"),
        ({"series": [[0] * 2**20]}, "series", "max_numbers"),
        ({"series": [[1]] * 400, "horizon": 64, "quantiles": [0.5] * 9}, None, ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(served: tuple[Server, Any], body: Any, param: str | None, message: str) -> None:
    answer = served[0].post("/v1/forecast", body)
    assert answer.status_code == (400 if param else 200), answer.text
    if param:
        error = answer.json()["error"]
        assert error["param"] == param
        assert message in error["message"]


def test_floods_of_numbers_are_refused_at_once(served: tuple[Server, Any]) -> None:
    server = served[0]
    process = psutil.Process(server.process.pid)
    processes = [process, *process.children(recursive=True)]
    before = sum(sum(one.cpu_times()[:2]) for one in processes)
    for text, count in ((b"0", 10_000_000), (b"1.5", 2_500_000), (b"-1e999", 100_000), (b"NaN", 10), (b"[1]", 1 << 20)):
        body = b'{"series": [[' + b",".join([text] * count) + b"]]}"
        answer = web.post(f"{server.url}/v1/forecast", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 413)
    assert sum(sum(one.cpu_times()[:2]) for one in processes) - before < 5  # all together
    assert sum(one.memory_info().rss for one in processes) < 2 * 2**30
