"""Series of all lengths at once get the forecasts that transformers gives for each alone."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from app.check_model import check
from app.checkpoint.folder import ModelFolder
from app.checkpoint.forecasters import ForecasterConfig
from app.core.request import Extras
from app.core.sampling import SamplingParams
from app.core.step import NewRequest, SchedulerOutput
from app.core.wire import PredictCommand
from app.engine.build import build_engine
from app.errors import ModelError, StartupError
from app.settings import load_settings
from app.worker.forecaster import Forecaster
from app.worker.forecaster_factory import build_forecaster

_TIMESFM: dict[str, Any] = {
    "context_length": 64,
    "patch_length": 8,
    "horizon_length": 16,
    "hidden_size": 32,
    "intermediate_size": 32,
    "head_dim": 8,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "PatchTSTForPrediction": {"num_input_channels": 2, "context_length": 32, "patch_length": 8, "patch_stride": 4,
                              "prediction_length": 12, "d_model": 16, "ffn_dim": 32, "num_hidden_layers": 2},
    "PatchTSMixerForPrediction": {"num_input_channels": 3, "context_length": 32, "prediction_length": 12,
                                  "mode": "mix_channel", "prediction_channel_indices": [2, 0]},
    "TimesFmModelForPrediction": _TIMESFM | {"use_positional_embedding": True},
    "TimesFm2_5ModelForPrediction": _TIMESFM | {"num_key_value_heads": 4, "output_quantile_len": 32},
}  # fmt: skip


def write_forecaster(folder: Path, architecture: str, **options: Any) -> Any:
    """A random forecaster, saved to a folder; transformers' own model in float32."""
    kind = getattr(transformers, architecture)
    torch.manual_seed(0)
    model = kind(kind.config_class(**FAMILIES[architecture] | options))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.15
    model.save_pretrained(folder)
    return model.float().eval()


def config_of(folder: Path) -> ForecasterConfig:
    config = ModelFolder(folder).predictor
    assert isinstance(config, ForecasterConfig)
    return config


def make_series(channels: int, lengths: list[int], gaps: bool) -> list[NDArray[np.float64]]:
    """Series (channels, values) of these lengths, far from 0 and of different sizes."""
    rng = np.random.default_rng(0)
    series = [
        100.0 * at + (1 + at) * rng.standard_normal((channels, length)).cumsum(1) for at, length in enumerate(lengths)
    ]
    for one in series:
        if gaps and one.shape[1] > 8:
            one[:, 2:4] = np.nan
            one[0, -1] = np.nan
    return series


def forecast(
    folder: Path, series: list[NDArray[np.float64]], horizons: list[int], **settings: Any
) -> list[NDArray[np.float32]]:
    """Forecasts (targets, moments, numbers), computed in one step."""
    config = config_of(folder)
    built = build_forecaster(load_settings(device="cpu", **settings), folder, config)
    config = config.limited_to(built.limits.max_model_len)
    requests = []
    for row, (values, horizon) in enumerate(zip(series, horizons, strict=True)):
        media = config.prepare(values, horizon, frequency=row % 3)  # type: ignore[arg-type]
        tokens = [0] * media.num_tokens
        requests.append(
            NewRequest(row=row, token_ids=tokens, num_prompt_tokens=len(tokens), block_ids=[],
                       sampling=SamplingParams(max_tokens=0, seed=0), extras=Extras(media=media))
        )  # fmt: skip
    rows = list(range(len(requests)))
    step = SchedulerOutput(requests, [], rows, [str(row) for row in rows], [len(one.token_ids) for one in requests])
    vectors = built.worker.submit(step).result().vectors
    shape = (len(config.targets), -1, config.numbers)
    return [np.frombuffer(vectors[row], np.float32).reshape(shape) for row in rows]


LENGTHS = [32, 1, 5, 8, 31, 100, 33, 64, 20, 9]


@torch.inference_mode()
@pytest.mark.parametrize("architecture", ["PatchTSTForPrediction", "PatchTSMixerForPrediction"])
@pytest.mark.parametrize("scaling", ["std", "mean"])
def test_models_of_patches(architecture: str, scaling: str, tmp_path: Path) -> None:
    oracle = write_forecaster(tmp_path, architecture, scaling=scaling)
    config = config_of(tmp_path)
    series = make_series(config.channels, LENGTHS, gaps=True)
    found = forecast(tmp_path, series, [7] * len(series))
    for values, numbers in zip(series, found, strict=True):
        past = np.full((32, config.channels), np.nan)
        past[-min(32, values.shape[1]) :] = values.T[-32:]
        mask = "past_observed_mask" if architecture.startswith("PatchTST") else "observed_mask"
        tensor = torch.tensor(np.nan_to_num(past)[None], dtype=torch.float32)
        output = oracle(past_values=tensor, **{mask: torch.tensor(~np.isnan(past)[None])})
        expected = output.prediction_outputs[0, :7].T.numpy()
        np.testing.assert_allclose(numbers[..., 0], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@torch.inference_mode()
def test_timesfm_2_and_its_passes(tmp_path: Path) -> None:
    oracle = write_forecaster(tmp_path, "TimesFmModelForPrediction")
    series = make_series(1, LENGTHS, gaps=False)
    horizons = [16, 40, 5, 17, 16, 33, 1, 64, 16, 16]
    found = forecast(tmp_path, series, horizons)
    for row, (values, horizon, numbers) in enumerate(zip(series, horizons, found, strict=True)):
        past = torch.tensor(values[0], dtype=torch.float32)
        expected = np.empty((0, 10), np.float32)
        while len(expected) < horizon:
            output = oracle(past_values=[past], freq=[row % 3])
            expected = np.concatenate([expected, output.full_predictions[0].numpy()])
            past = torch.cat([past, output.mean_predictions[0]])
        expected = expected[:horizon]
        np.testing.assert_allclose(numbers[0], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@torch.inference_mode()
@pytest.mark.parametrize("max_len", [None, 4])
def test_timesfm_2_5(max_len: int | None, tmp_path: Path) -> None:
    """Some series are without negative numbers, and so are their forecasts, whatever is beside them."""
    oracle = write_forecaster(tmp_path, "TimesFm2_5ModelForPrediction")
    series = [one - 400 for one in make_series(1, LENGTHS, gaps=False)]
    series += [one - one.min() for one in series]
    found = forecast(tmp_path, series, [16] * len(series), max_model_len=max_len)
    is_clamped = False
    for values, numbers in zip(series, found, strict=True):
        past = torch.tensor(values[0], dtype=torch.float32)
        output = oracle(past_values=[past], forecast_context_len=8 * max_len if max_len else None)
        expected = output.full_predictions[0].numpy()
        is_clamped |= bool((expected == 0).any() and values.min() >= 0)
        np.testing.assert_allclose(numbers[0], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert is_clamped


def test_gaps_of_timesfm_are_filled_as_its_authors_fill_them(tmp_path: Path) -> None:
    write_forecaster(tmp_path, "TimesFmModelForPrediction")
    nan = np.nan
    media = config_of(tmp_path).prepare(np.array([[nan, nan, 1, nan, nan, 4, 2, nan]]), 3)
    assert media.arrays["values"].numpy()[:, 0].tolist() == [1, 2, 3, 4, 2, 2]


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    write_forecaster(tmp_path, "PatchTSTForPrediction")
    for wrong, match in (
        ({"dtype": "bfloat16"}, "dtype: "),
        ({"quantization": "int8"}, "quantization: "),
        ({"batch_invariant": True}, "batch_invariant: "),
        ({"max_model_len": 7}, "max_model_len: this model reads 14 patches"),
    ):
        with pytest.raises(StartupError, match=match):
            build_forecaster(load_settings(device="cpu", **wrong), tmp_path, config_of(tmp_path))
    write_forecaster(tmp_path, "PatchTSTForPrediction", share_projection=False)
    with pytest.raises(ModelError, match="does not run as a forecaster: IndexError"):
        build_forecaster(load_settings(device="cpu"), tmp_path, config_of(tmp_path))
    config = {"architectures": ["ChronosBoltModelForForecasting"], "is_encoder_decoder": True, "model_type": "t5"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"chronos_config": {"context_length": 2048}}))
    with pytest.raises(ModelError, match=r"ChronosBoltModel.*of Chronos, only T5ForConditionalGeneration"):
        config_of(tmp_path)
    write_forecaster(tmp_path, "PatchTSTForPrediction", loss="nll")
    with pytest.raises(ModelError, match="the loss nll, which forecasts distributions, is not supported"):
        config_of(tmp_path)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_check_model_compares_forecasts(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_forecaster(tmp_path, architecture)
    assert check(str(tmp_path))
    assert "transformers: agrees" in capsys.readouterr().out
    original = Forecaster.read
    monkeypatch.setattr(Forecaster, "read", lambda self, requests: [one * 1.001 for one in original(self, requests)])
    assert not check(str(tmp_path))
    assert "transformers: DIFFERS" in capsys.readouterr().out


@torch.inference_mode()
def test_an_engine_reads_series_of_all_lengths(tmp_path: Path) -> None:
    oracle, config = write_forecaster(tmp_path, "TimesFmModelForPrediction"), config_of(tmp_path)
    core, ready = build_engine(load_settings(model=str(tmp_path), device="cpu"), tmp_path)
    assert (ready.tasks, ready.max_model_len) == (("forecast",), config.max_len)
    series = make_series(1, [5, 100, 33], gaps=False)
    for index, values in enumerate(series):
        media = config.prepare(values, horizon=16)
        core.add(PredictCommand(request_id=str(index), media=media, arrived_at=time.monotonic()))
    outputs = []
    while core.has_work:
        outputs += core.step().outputs
    for values, output in zip(series, sorted(outputs, key=lambda output: output.request_id), strict=True):
        assert output.vector is not None
        found = np.frombuffer(output.vector, np.float32).reshape(1, 16, config.numbers)[0]
        past = torch.tensor(values[0], dtype=torch.float32)
        expected = oracle(past_values=[past], freq=[0]).full_predictions[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
