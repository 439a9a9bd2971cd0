"""Series with channels, from the request to the engine and back."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.checkpoint.forecasters import ForecasterConfig
from app.core.request import FinishReason
from app.core.wire import PredictCommand, RequestOutput
from tests.api.conftest import Server, start_server
from tests.api.test_document import _check

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
