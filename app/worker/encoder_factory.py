"""Building an encoder's worker from settings."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from ..checkpoint.encoders import EncoderConfig
from ..checkpoint.folder import ModelFolder
from ..core.sampling import SamplingParams
from ..core.step import BuiltWorker, NewRequest
from ..errors import ModelError
from ..layers.linear import change
from ..layers.methods import Methods, choose
from ..layers.methods.plain import PLAIN, adopt_all
from ..models.pooling import Pooler
from ..models.stored import finish_stored, load_pretrained
from ..models.weights import refuse_unmatched
from ..settings import Settings
from .predictive_runner import PredictiveRunner
from .resolve import Resolved, resolve
from .text_encoder import TextEncoder

_TOKENS = 4096
"""Of a step, unless settings say something else."""
_LONGEST_TRIAL = 512
"""Tokens of the trial's longest input: as many as most models with a table of positions have in it."""

_TOLERANCE = 0.05
"""The difference that the trial allows, relative to the largest number: several times bfloat16's rounding."""
_LONGEST_QUOTE = 200
"""Characters of a library's error that are shown."""


def build_encoder(settings: Settings, path: Path, config: EncoderConfig) -> BuiltWorker:
    """Load the encoder in a folder. Raises StartupError."""
    if settings.batch_invariant:
        raise ModelError(f"batch_invariant: models that generate can be, and the model in {path} is an encoder")
    folder, began = ModelFolder.open(path), time.monotonic()
    resolved = resolve(settings, folder)
    methods = choose(folder, resolved.device, resolved.dtype, settings.quantization)
    try:
        model = _load(folder, methods, config, resolved)
    except ModelError:
        raise
    except Exception as error:  # the library's, of many kinds
        raise ModelError(f"{path} cannot be loaded: {' '.join(str(error).split())[:_LONGEST_QUOTE]}") from error
    if resolved.device.type == "cpu":  # elsewhere transformers' own layers are as fast
        adopt_all(model)
        change(model, PLAIN, methods.plain)
    max_len = min(config.max_len, settings.max_model_len or config.max_len)
    max_tokens = max(max_len, settings.max_num_batched_tokens or _TOKENS)
    limits = replace(
        resolved.limits,
        max_model_len=max_len,
        max_num_batched_tokens=max_tokens,
        max_num_seqs=min(settings.max_num_seqs or _TOKENS, max_tokens),
        chunked_prefill=False,
    )
    pooler = None if config.task == "classify" else Pooler(folder, config.modules).to(resolved.device).eval()
    text = model.config.get_text_config()
    pad_id = getattr(text, "pad_token_id", None) or 0
    runner = PredictiveRunner(TextEncoder(model, pooler, resolved.device, pad_id))
    _try(runner, folder, min(max_len, _LONGEST_TRIAL), token_id=int(pad_id == 0))
    return BuiltWorker(
        worker=runner,
        limits=limits,
        architecture=folder.architecture,
        model_impl="transformers",
        device=str(resolved.device),
        dtype=str(resolved.dtype).removeprefix("torch."),
        vocab_size=int(text.vocab_size),
        startup_seconds={"load_weights": time.monotonic() - began},
    )


def _load(folder: ModelFolder, methods: Methods, config: EncoderConfig, resolved: Resolved) -> Any:
    """transformers' model, with every tensor of the checkpoint in it that has to do with its task."""
    shape = AutoConfig.from_pretrained(folder.path, trust_remote_code=False)
    kind: Any = AutoModelForSequenceClassification if config.task == "classify" else AutoModel
    if folder.architecture.endswith("EncoderModel"):  # the half of an encoder-decoder model
        kind = getattr(transformers, folder.architecture)
    elif shape.is_encoder_decoder:
        raise ModelError(f"{folder.model_type} is an encoder-decoder model, which is not supported")
    model, info = load_pretrained(kind, folder, methods, shape, resolved.dtype)
    if config.task == "embed":  # what stands behind the hidden states is not read
        info["missing_keys"] = {key for key in info["missing_keys"] if not key.startswith("pooler.")}
        if not folder.architecture.endswith("Model"):
            parts = {name for name, _ in model.named_children()}
            info["unexpected_keys"] = {key for key in info["unexpected_keys"] if key.split(".")[0] in parts}
    refuse_unmatched(folder, info)
    finish_stored(model)
    return model.to(resolved.device).eval().requires_grad_(False)


def _try(runner: PredictiveRunner, folder: ModelFolder, longest: int, token_id: int) -> None:
    """Run a long input, and a short one beside one that is longer. ModelError says what does not work."""
    long, middle, short = (_request([token_id] * length) for length in (longest, 4, 2))
    try:
        runner.predict([long])
        padded, alone = runner.predict([short, middle])[0], runner.predict([short])[0]
    except Exception as error:  # the library's, of many kinds
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST_QUOTE]}"
        raise ModelError(f"{folder.architecture} does not run as an encoder: {reason}") from error
    found, expected = np.frombuffer(padded, np.float32), np.frombuffer(alone, np.float32)
    if not np.allclose(found, expected, rtol=0, atol=_TOLERANCE * np.abs(expected).max()):  # so that NaN differs
        raise ModelError(f"{folder.architecture} gives an input another result beside a longer one")


def _request(token_ids: list[int]) -> NewRequest:
    return NewRequest(
        row=0,
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        block_ids=[],
        sampling=SamplingParams(max_tokens=0, seed=0),
    )
