"""A server with Chronos: forecasts are those of its published algorithm, run by transformers' T5."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from app import check_model
from tests.models.encoder_decoders import write_encoder_decoder
from tests.server.examples import check_examples
from tests.server.process import Server, running_server

CHRONOS = {
    "tokenizer_class": "MeanScaleUniformBins",
    "tokenizer_kwargs": {"low_limit": -6.0, "high_limit": 6.0},
    "context_length": 60,
    "prediction_length": 50,
    "n_tokens": 64,
    "n_special_tokens": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "use_eos_token": True,
    "model_type": "seq2seq",
    "num_samples": 20,
    "temperature": 1.3,
    "top_k": 12,
    "top_p": 1.0,
}
_IDS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chronos")


@pytest.fixture(scope="module")
def chronos(folder: Path) -> Iterator[tuple[Server, PreTrainedModel]]:
    model = write_encoder_decoder("T5", folder, {"vocab_size": 64, "chronos_config": CHRONOS, **_IDS})
    flags = ("--dtype", "float32", "--cpu-threads", "1", "--max-num-seqs", "16", "--max-num-batched-tokens", "128")
    with running_server("--model", str(folder), *flags) as server:
        yield server, model


class Published:
    """amazon-science/chronos-forecasting (chronos.py), in short."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.centers = torch.linspace(-6.0, 6.0, 61)
        middle = (self.centers[1:] + self.centers[:-1]) / 2
        self.boundaries = torch.cat([torch.tensor([-1e20]), middle, torch.tensor([1e20])])

    def read(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens and mask (1, tokens), and the scale, of a context (values,)."""
        context = context[-60:]
        is_there = ~context.isnan()
        scale = context.abs().nansum() / is_there.sum()
        scale = scale if scale > 0 else torch.tensor(1.0)
        ids = torch.bucketize(context / scale, self.boundaries, right=True) + 2
        ids.clamp_(0, 63)
        ids[~is_there] = 0
        ids, is_there = torch.cat([ids, torch.tensor([1])]), torch.cat([is_there, torch.tensor([True])])
        return ids[None], is_there[None], scale

    def paths(self, series: list[float | None], horizon: int) -> torch.Tensor:
        """(1, horizon): the most probable path."""
        context = torch.tensor([np.nan if number is None else number for number in series])
        done: list[torch.Tensor] = []
        while (left := horizon - sum(part.shape[1] for part in done)) > 0:
            ids, mask, scale = self.read(context)
            count = min(left, 50)
            config = GenerationConfig(
                min_new_tokens=count, max_new_tokens=count, do_sample=True, top_k=1, use_cache=False, **_IDS
            )
            tokens = self.model.generate(ids, attention_mask=mask.long(), generation_config=config)[:, 1:]
            done.append(self.centers[(tokens - 3).clamp(0, 60)] * scale)
            context = torch.cat([context, done[-1].median(dim=0).values])
        return torch.cat(done, dim=1)

    @torch.inference_mode()
    def first(self, series: list[float | None]) -> tuple[np.ndarray, np.ndarray]:
        """The values (12,) that a path may begin with, ascending, and their probabilities."""
        ids, mask, scale = self.read(torch.tensor([np.nan if number is None else number for number in series]))
        start = torch.tensor([[0]])
        logits = self.model(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=start).logits[0, 0]
        logits[1] = -torch.inf
        largest, tokens = (logits / 1.3).topk(12)
        order = tokens.argsort()
        values = self.centers[(tokens[order] - 3).clamp(0, 60)] * scale
        return values.numpy(), largest.softmax(-1)[order].numpy()


def post(server: Server, **body: Any) -> Any:
    answer = server.post("/v1/forecast", body)
    assert answer.status_code == 200, answer.text
    return answer.json()


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
    check_examples(chronos[0].url, "docs/forecasting.md: Chronos")


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
