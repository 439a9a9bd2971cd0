"""Shows whether and how a model would run here, and compares its results with those of transformers."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from .check_predictor import MOST_PATCHES, forecasts_differ, images_differ
from .checkpoint.encoder_decoders import EncoderDecoderConfig
from .checkpoint.encoders import EncoderConfig
from .checkpoint.folder import ModelFolder
from .checkpoint.forecasters import ForecasterConfig
from .checkpoint.image_models import ImageModelConfig
from .checkpoint.sentence_transformers import Pooling
from .checkpoint.source import find_model
from .core.media import Media
from .core.sampling import SamplingParams
from .core.sources import sound_source, text_source
from .core.wire import EngineReady, GenerateCommand, PredictCommand
from .engine.build import build_engine
from .engine.core import EngineCore
from .errors import StartupError
from .models.pooling import Pooler, pooling_of
from .models.reference import transformers_model
from .settings import load_settings

_NUM_TOKENS = 48
_TOLERANCE = 1e-3
"""The largest difference of log probabilities in float32 that rounding explains, over dozens of layers."""


_ENCODER_TOLERANCE = 1e-4
"""The same for vectors of length 1, and for a classifier's logits."""


def check(model: str) -> bool:
    """Print how a model would run, and compare its results with those of transformers. Returns whether they agree."""
    console = Console()
    try:
        folder = find_model(model)
        predictor = ModelFolder(folder, load_settings(model=model).task).predictor
        if isinstance(predictor, ForecasterConfig):
            return _of_forecaster(console, model, folder, predictor)
        if isinstance(predictor, ImageModelConfig):
            return _of_image_model(console, model, folder, predictor)
        return all(
            _of_generator(console, model, folder)
            if predictor is None
            else _of_encoder(console, model, folder, predictor)
        )
    except StartupError as error:
        console.print(f"[red]{model} cannot run:[/red] {error}")
        return False


def _of_generator(console: Console, model: str, folder: Path) -> Iterator[bool]:
    """Report on each implementation that can run a generating model, and yield whether it agrees."""
    # Chunks of one block, in float32: paging, chunking and the cache take part, and rounding does not matter.
    # Quantized weights are taken for the numbers that they stand for, as transformers takes them.
    settings = load_settings(
        model=model, dtype="float32", device="cpu", max_model_len=_NUM_TOKENS + 2, quantization="none"
    )
    settings = settings.model_copy(update={"max_num_batched_tokens": 16, "max_num_seqs": 4})
    core, ready = build_engine(settings, folder)
    _say_how(console, model, ready)
    is_gguf = ModelFolder(folder).gguf_file is not None
    for impl in _paths(ready.model_impl, is_gguf):
        if impl != ready.model_impl:
            core, ready = build_engine(settings.model_copy(update={"model_impl": impl}), folder)
        difference = _largest_difference(core, folder, ready.vocab_size)
        yield _report(console, impl, "log probabilities", difference, _TOLERANCE)


def _of_encoder(console: Console, model: str, folder: Path, config: EncoderConfig) -> Iterator[bool]:
    """The same for an encoder, which has one implementation."""
    core, ready = build_engine(load_settings(model=model, dtype="float32", device="cpu", quantization="none"), folder)
    _say_how(console, model, ready)
    what, ours, theirs = _encode(core, folder, config, ready.vocab_size)
    yield _report(console, ready.model_impl, what, float((ours - theirs).abs().max()), _ENCODER_TOLERANCE)


def _of_image_model(console: Console, model: str, folder: Path, config: ImageModelConfig) -> bool:
    """The same for a model that reads images."""
    core, ready = build_engine(load_settings(model=model, dtype="float32", device="cpu"), folder)
    _say_how(console, model, ready)
    difference = images_differ(core, folder, config)
    what = "logits" if config.task == "classify" else "vectors"
    return _report(
        console, ready.model_impl, f"{what}, relative to their largest number,", difference, _ENCODER_TOLERANCE
    )


def _of_forecaster(console: Console, model: str, folder: Path, config: ForecasterConfig) -> bool:
    """The same for a model that forecasts."""
    is_long = config.family == "timesfm2_5" and config.max_len > MOST_PATCHES
    max_len = MOST_PATCHES if is_long else config.max_len
    core, ready = build_engine(load_settings(model=model, device="cpu", max_model_len=max_len), folder)
    _say_how(console, model, ready)
    difference = forecasts_differ(core, folder, config.limited_to(max_len))
    return _report(
        console, ready.model_impl, "forecasts, relative to their largest number,", difference, _ENCODER_TOLERANCE
    )


def _say_how(console: Console, model: str, ready: EngineReady) -> None:
    console.print(f"[bold]{model}[/bold]: {ready.architecture}, run by Paceline's {ready.model_impl} path")
    if ready.reads_images:
        console.print("it reads images (docs/images.md); what follows is of text")
    console.print(f"tasks: {', '.join(ready.tasks)}")


def _report(console: Console, impl: str, what: str, difference: float, tolerance: float) -> bool:
    agrees = difference < tolerance
    verdict = "[green]agrees[/green]" if agrees else "[red]DIFFERS[/red]"
    console.print(f"{impl}: {verdict} with transformers; {what} differ by {difference:.1e} at most")
    return agrees


def _paths(default: str, is_gguf: bool) -> list[str]:
    """The implementations that can run the model. The generic path runs what the decoder runs, but for GGUF."""
    return ["decoder", "generic"] if default == "decoder" and not is_gguf else [default]


# ---------------------------------------------------------------------- models that generate


def _largest_difference(core: EngineCore, folder: Path, vocab_size: int) -> float:
    """The largest difference between both log probabilities of the tokens of a random prompt.

    The encoder of an encoder-decoder reads something random, too.
    """
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(vocab_size, (_NUM_TOKENS,), generator=generator).tolist()
    source = None
    if (described := ModelFolder(folder).encoder_decoder) is not None:
        source = _random_source(described, vocab_size)
        prompt[0] = described.beginning[0]  # and its padding, which some of them do not place, is in no other place
        prompt[1:] = [token for token in prompt[1:] if token != ModelFolder(folder).config.get("pad_token_id")]
    sampling = SamplingParams(max_tokens=1, seed=0, temperature=0.0, prompt_logprobs=0)
    core.add(
        GenerateCommand(
            request_id="check",
            prompt_token_ids=prompt,
            source=source,
            sampling=sampling,
            arrived_at=time.monotonic(),
        )
    )
    ours = []
    while core.has_work:
        for output in core.step().outputs:
            if output.error:
                raise StartupError(output.error)
            ours += [entry.logprobs[0] for entry in output.prompt_logprobs]
    return float((torch.tensor(ours) - _reference(folder, prompt, source)).abs().max())


def _random_source(described: EncoderDecoderConfig, vocab_size: int) -> Media:
    draw = np.random.default_rng(0)
    if described.hears:
        assert described.max_source_len is not None
        features = draw.standard_normal((described.num_mel_bins, described.num_frames)).astype(np.float32)
        return sound_source(features, described.max_source_len)
    return text_source(draw.integers(vocab_size, size=_NUM_TOKENS).tolist())


@torch.inference_mode()
def _reference(folder: Path, prompt: list[int], source: Media | None) -> torch.Tensor:
    """Log probabilities (tokens - 1,) of all tokens but the first, by transformers' own model."""
    inputs = {"input_ids": torch.tensor([prompt])}
    if source is not None:
        arrays = {name: torch.tensor(array.numpy())[None] for name, array in source.arrays.items()}
        inputs = {"decoder_input_ids": torch.tensor([prompt])} | arrays
    logits = transformers_model(folder)(**inputs).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]


# ---------------------------------------------------------------------- encoders


@torch.inference_mode()
def _encode(
    core: EngineCore, folder: Path, config: EncoderConfig, vocab_size: int
) -> tuple[str, torch.Tensor, torch.Tensor]:
    """What was computed of random inputs of all lengths, and the numbers: Paceline's, computed at once, and
    transformers'."""
    from .models.predicting import CLASSES, answer_tokens

    model = CLASSES[config.task].from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    inputs = _random_inputs(min(config.max_len, _NUM_TOKENS), vocab_size, model.config.get_text_config().pad_token_id)
    for index, token_ids in enumerate(inputs):
        types = [0] * len(token_ids)
        core.add(
            PredictCommand(request_id=f"{index}", token_ids=token_ids, type_ids=types, arrived_at=time.monotonic())
        )
    given: dict[str, torch.Tensor] = {}
    while core.has_work:
        for output in core.step().outputs:
            if output.error:
                raise StartupError(output.error)
            given[output.request_id] = torch.frombuffer(bytearray(output.vector), dtype=torch.float32)
    ours = [given[f"{index}"] for index in range(len(inputs))]
    outputs = [model(torch.tensor([token_ids])) for token_ids in inputs]
    match config.task:
        case "judge":
            answers = list(answer_tokens(ModelFolder(folder), config))
            return "logits of two tokens", torch.cat(ours), torch.cat([out.logits[0, -1, answers] for out in outputs])
        case "classify" | "token_classify":
            return "logits", torch.cat(ours), torch.cat([out.logits[0].flatten() for out in outputs])
    modes = pooling_of(config.modules, model)
    theirs = torch.stack([_pooled(output.last_hidden_state[0], modes) for output in outputs])
    theirs = Pooler(ModelFolder(folder), config.modules).dense(theirs)
    normalize = partial(torch.nn.functional.normalize, dim=-1)
    return f"{'+'.join(modes)} embeddings of length 1", normalize(torch.stack(ours)), normalize(theirs)


def _random_inputs(longest: int, vocab_size: int, padding: int | None) -> list[list[int]]:
    """Random token ids of all lengths up to `longest`, without the padding token, which some models treat specially."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(vocab_size - 1, (longest, longest), generator=generator)
    if padding is not None:
        drawn += drawn >= padding
    return [row[: length + 1] for length, row in enumerate(drawn.tolist())]


def _pooled(hidden: torch.Tensor, modes: Sequence[Pooling]) -> torch.Tensor:
    """(numbers,): the pooled hidden states (tokens, hidden_size) of a single input."""
    weights = torch.arange(1.0, len(hidden) + 1)
    pooled = {
        "cls": hidden[0],
        "max": hidden.amax(0),
        "mean": hidden.mean(0),
        "mean_sqrt_len_tokens": hidden.sum(0) / len(hidden) ** 0.5,
        "weightedmean": weights @ hidden / weights.sum(),
        "lasttoken": hidden[-1],
    }
    return torch.cat([pooled[mode] for mode in modes])
