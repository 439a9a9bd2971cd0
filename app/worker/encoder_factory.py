"""Building an encoder's worker from settings."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import AutoConfig

from ..checkpoint.encoders import EncoderConfig
from ..checkpoint.folder import ModelFolder
from ..core.sampling import SamplingParams
from ..core.step import BuiltWorker, NewRequest
from ..errors import ModelError, quoted, text_of
from ..layers.linear import change
from ..layers.methods import Methods, choose
from ..layers.methods.plain import PLAIN, adopt_all
from ..models.pooling import Pooler, pooling_of
from ..models.predicting import CLASSES, answer_tokens
from ..models.stored import finish_stored, load_pretrained
from ..models.weights import refuse_unmatched
from ..settings import Settings
from .predictive_runner import PredictiveRunner
from .predictor_parts import built_of
from .resolve import Resolved, resolve
from .text_encoder import (
    Answer,
    TextEncoder,
    embedding,
    logits,
    logits_behind_last,
    logits_of_last,
    logits_of_tokens,
)

log = logging.getLogger(__name__)

_LONGEST_TRIAL = 514
"""Tokens of the trial's longest input: as many as most models with a table of positions have in it, and two more."""

_TOLERANCE = 0.05
"""The difference that the trial allows, relative to the largest number: several times bfloat16's rounding."""
_SAME = 1e-5
"""The same for two computations in which nothing differs that should count."""


def build_encoder(settings: Settings, path: Path, config: EncoderConfig) -> BuiltWorker:
    """Load the encoder in a folder. Raises StartupError."""
    if settings.batch_invariant:
        raise ModelError(f"batch_invariant: models that generate can be, and the model in {path} is an encoder")
    folder, began = ModelFolder.open(path, settings.task), time.monotonic()
    resolved = resolve(settings, folder)
    methods = choose(folder, resolved.device, resolved.dtype, settings.quantization)
    try:
        model = _load(folder, methods, config, resolved)
    except ModelError:
        raise
    except Exception as error:  # the library's, of many kinds
        raise ModelError(f"{path} cannot be loaded: {text_of(error)}") from error
    if resolved.device.type == "cpu":  # elsewhere transformers' own layers are as fast
        adopt_all(model)
        change(model, PLAIN, methods.plain)
    max_len = min(config.max_len, settings.max_model_len or config.max_len)
    vocab_size = int(model.config.get_text_config().vocab_size)
    runner = _try(model, folder, config, resolved.device, min(max_len, _LONGEST_TRIAL))
    return built_of(settings, folder, resolved, runner, max_len, began, vocab_size)


def _load(folder: ModelFolder, methods: Methods, config: EncoderConfig, resolved: Resolved) -> Any:
    """transformers' model, with every tensor of the checkpoint in it that has to do with its task."""
    shape = AutoConfig.from_pretrained(folder.path, trust_remote_code=False)
    kind = CLASSES[config.task]
    if folder.architecture.endswith("EncoderModel"):  # the half of an encoder-decoder model
        kind = getattr(transformers, folder.architecture)
    elif shape.is_encoder_decoder:
        raise ModelError(f"{folder.model_type} is an encoder-decoder model, which is not supported")
    # transformers' faster attention leaves out the soft-capping of scores.
    caps = getattr(shape.get_text_config(), "attn_logit_softcapping", None) is not None
    options = {"attn_implementation": "eager"} if caps else {}
    model, info = load_pretrained(kind, folder, methods, shape, resolved.dtype, **options)
    parts = {name for name, _ in model.named_children()}
    if config.task == "embed":  # what stands behind the hidden states is not read
        info["missing_keys"] = {key for key in info["missing_keys"] if not key.startswith("pooler.")}
        if not folder.architecture.endswith("Model"):
            info["unexpected_keys"] = {key for key in info["unexpected_keys"] if key.split(".")[0] in parts}
    if config.task == "token_classify":  # checkpoints may have what other tasks need
        info["unexpected_keys"] = {key for key in info["unexpected_keys"] if ".pooler." not in key}
    refuse_unmatched(folder, info)
    finish_stored(model)
    for part in (model.config, model.config.get_text_config()):
        part.use_cache = False
    if config.task == "judge":
        _keep_answers(model, folder, config)
    return model.to(resolved.device).eval().requires_grad_(False)


def _keep_answers(model: Any, folder: ModelFolder, config: EncoderConfig) -> None:
    """Leave of a generator's last layer what makes the logits of two tokens."""
    ids = list(answer_tokens(folder, config))
    head = model.get_output_embeddings()
    if max(ids) >= len(head.weight):
        raise ModelError(f"{folder.path}: the answers {ids} are not in the vocabulary of {len(head.weight)} tokens")
    rows = nn.Linear(head.weight.shape[1], len(ids), head.bias is not None, dtype=head.weight.dtype)
    rows.weight.data = head.weight.data[ids]
    if head.bias is not None:
        rows.bias.data = head.bias.data[ids]
    model.set_output_embeddings(rows)


def _reader(model: Any, folder: ModelFolder, config: EncoderConfig, device: torch.device) -> TextEncoder:
    """What reads inputs with a model that is loaded."""
    text = model.config.get_text_config()
    padding: int | None = getattr(text, "pad_token_id", None)
    answer: Answer = logits
    reads = model
    match config.task:
        case "embed":
            modules = replace(config.modules, pooling=pooling_of(config.modules, model))
            answer = embedding(Pooler(folder, modules).to(device).eval())
        case "token_classify":
            answer = logits_of_tokens
        case "judge":
            answer = logits_of_last
        case "classify" if hasattr(model, "score"):  # so transformers calls the head of decoders
            answer, reads = logits_behind_last(model.score, padding), getattr(model, model.base_model_prefix)
    pad_id = padding if padding is not None and 0 <= padding < text.vocab_size else 0
    return TextEncoder(reads, answer, device, pad_id)


def _try(
    model: Any, folder: ModelFolder, config: EncoderConfig, device: torch.device, longest: int
) -> PredictiveRunner:
    """What runs inputs, once a long one has run, and a short one beside others. ModelError says what does not work."""
    try:
        reader = _reader(model, folder, config, device)
        runner, size = PredictiveRunner(reader), int(model.config.get_text_config().vocab_size)
        tokens = [token for token in range(min(size, 16)) if token != reader.pad_id] * longest
        runner.predict([_request(tokens[:longest])])
        short, other = _request(tokens[:2]), _request(tokens[2:4])
        alone = runner.predict([short])[0]
        runner.pads = _can_pad(runner, reader, short, _request(tokens[2:6]), alone)
        if not runner.pads:
            log.info("inputs of different sizes are read apart: padding changes what %s computes", folder.architecture)
        beside = runner.predict([short, other])[0]
        own = _own(model, short.token_ids) if config.task == "classify" else alone
    except ModelError:
        raise
    except Exception as error:  # the library's, of many kinds
        raise ModelError(f"{folder.architecture} does not run as an encoder: {quoted(error)}") from error
    if not _agree(beside, alone):
        raise ModelError(f"{folder.architecture} gives an input another result beside another one")
    if not _agree(alone, own):
        raise ModelError(f"{folder.architecture} does not classify by its last token, as decoders do")
    return runner


def _can_pad(
    runner: PredictiveRunner, reader: TextEncoder, short: NewRequest, longer: NewRequest, alone: bytes
) -> bool:
    """Whether an input has the result that it has alone also beside a longer one, whatever token is the padding.

    Padding that takes part may change a result as little as rounding does. But nothing is rounded in another way
    because the padding is another token.
    """
    padded, pad_id = runner.predict([short, longer])[0], reader.pad_id
    reader.pad_id = longer.token_ids[-1]
    padded_otherwise = runner.predict([short, longer])[0]
    reader.pad_id = pad_id
    return _agree(padded, alone) and _agree(padded, padded_otherwise, _SAME)


@torch.inference_mode()
def _own(model: Any, token_ids: list[int]) -> bytes:
    """The logits that transformers' classifier itself gives for an input."""
    given: torch.Tensor = model(input_ids=torch.tensor([token_ids], device=model.device)).logits[0]
    return given.float().cpu().numpy().tobytes()


def _agree(one: bytes, other: bytes, tolerance: float = _TOLERANCE) -> bool:
    found, expected = np.frombuffer(one, np.float32), np.frombuffer(other, np.float32)
    return np.allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())  # so that NaN differs


def _request(token_ids: list[int]) -> NewRequest:
    return NewRequest(
        row=0,
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        block_ids=[],
        sampling=SamplingParams(max_tokens=0, seed=0),
    )
