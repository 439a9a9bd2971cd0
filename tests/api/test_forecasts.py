"""Series, with channels and without, from the request to the engine and back."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs

from app.checkpoint.forecasters import ForecasterConfig
from app.core.request import FinishReason
from app.core.wire import PredictCommand, RequestOutput
from app.settings import RequestLimits, load_settings
from app.worker.forecaster_factory import build_forecaster
from app.worker.predictor_parts import request_of
from tests.api.conftest import Server, start_server
from tests.api.fake_engine import READY
from tests.api.test_document import _check
from tests.worker.test_forecaster import config_of, write_forecaster

CONFIG = ForecasterConfig(
    "patchtsmixer", channels=3, targets=(0, 2), context=4, patch=2, max_len=256, horizon=3, max_horizon=3
)


def repeat(command: PredictCommand) -> list[RequestOutput]:
    """The engine's part: each channel's last number, counted on, for as long as the horizon says."""
    assert command.media is not None
    arrays = {name: array.numpy() for name, array in command.media.arrays.items()}
    last = np.nan_to_num(arrays["values"])[-1, list(CONFIG.targets)]
    vector = (last[:, None] + np.arange(int(arrays["horizon"]))).astype(np.float32).tobytes()
    return [RequestOutput(request_id=command.request_id, token_ids=[], finish_reason=FinishReason.STOP, vector=vector)]


@pytest.fixture(scope="module")
def forecaster(model_folder: Path) -> Iterator[Server]:
    for server in start_server(model_folder, CONFIG):
        server.engine.script = repeat
        yield server


def test_channels(forecaster: Server) -> None:
    series = [[1, None, 3, 4, 5], [0, 0, 0, 0, 0], [None, 2, 2, 2, None]]
    answer = forecaster.post("/v1/forecast", {"series": [series], "horizon": 2})
    _check(forecaster.get("/openapi.json").json(), answer, 200)
    (found,) = answer.json()["data"]
    assert found == {"object": "forecast", "index": 0, "mean": [[5, 6], [0, 1]], "quantiles": {}}
    command = forecaster.engine.commands.get_nowait()
    assert isinstance(command, PredictCommand)
    assert command.media is not None
    read = command.media.arrays["values"].numpy()
    np.testing.assert_array_equal(read, np.array([[np.nan, 3, 4, 5], [0, 0, 0, 0], [2, 2, 2, np.nan]]).T)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"series": [[1, 2, 3]]}, "series[0]: this model reads 3 channels, and the series has 1"),
        ({"series": [[[1], [2], [None]]]}, "series[0]: must have a number in each channel"),
        ({"series": [[[1], [2], 3]]}, "series[0][2]: must be a list of numbers, which is not empty"),
        ({"series": [[[1], [2], [3]]], "horizon": 4}, "horizon: at most 3 for this model"),
        ({"series": [[[1], [2], [3]]], "quantiles": [0.5]}, "quantiles: this model forecasts none"),
    ],
)
def test_what_does_not_fit_the_model_is_named(forecaster: Server, body: object, message: str) -> None:
    answer = forecaster.post("/v1/forecast", body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


@pytest.fixture(scope="module")
def timesfm(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Any]]:
    """The engine's part is done by a real forecaster."""
    folder = tmp_path_factory.mktemp("timesfm")
    oracle, config = write_forecaster(folder, "TimesFmModelForPrediction"), config_of(folder)
    worker: Any = build_forecaster(load_settings(device="cpu"), folder, config).worker

    def run(command: PredictCommand) -> list[RequestOutput]:
        assert command.media is not None
        (vector,) = worker.predict([request_of(command.media)])
        ended = {"token_ids": [], "finish_reason": FinishReason.STOP}
        return [RequestOutput(request_id=command.request_id, vector=vector, **ended)]

    for server in start_server(model_folder, config, request_limits=RequestLimits(max_inputs=400)):
        server.engine.ready = structs.replace(READY, max_model_len=config.max_len)
        server.engine.script = run
        yield server, oracle


def ask(server: Server, body: Any) -> Any:
    answer = server.post("/v1/forecast", body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@torch.inference_mode()
def test_a_crowd_gets_the_forecasts_of_transformers(timesfm: tuple[Server, Any]) -> None:
    server, oracle = timesfm
    rng = np.random.default_rng(1)
    requests = [
        [(rng.standard_normal(int(rng.integers(1, 120))).cumsum() * 10).tolist() for _ in range(1 + client % 3)]
        for client in range(24)
    ]
    requests[5][0] = [None, *requests[5][0], None]
    with ThreadPoolExecutor(len(requests)) as pool:
        bodies = [{"series": series, "frequency": "ME"} for series in requests]
        answers = list(pool.map(lambda body: ask(server, body), bodies))
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
    short = ask(server, {"series": [[1, 2, 3]], "horizon": 40, "quantiles": [0.5]})["data"][0]
    assert (len(short["mean"]), list(short["quantiles"])) == (40, ["0.5"])


def test_what_the_service_says_of_it(timesfm: tuple[Server, Any]) -> None:
    server, _ = timesfm
    model = server.get("/v1/models").json()["data"][0]
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
        ({"series": [[1]], "seed": 1}, "seed", "draws no samples"),
        ({"series": [[1]], "frequency": "fortnight"}, "frequency", "'fortnight' is none"),
        ({"series": [[1]] * 401}, "series", "at most 400 inputs"),
        ({"series": [[0] * 2**20]}, "series", "max_numbers"),
        ({"series": [[1]] * 4, "horizon": 64, "quantiles": [0.5] * 9}, None, ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(timesfm: tuple[Server, Any], body: Any, param: str | None, message: str) -> None:
    answer = timesfm[0].post("/v1/forecast", body)
    assert answer.status_code == (400 if param else 200), answer.text
    if param:
        error = answer.json()["error"]
        assert error["param"] == param
        assert message in error["message"]
