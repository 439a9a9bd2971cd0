"""Building an encoder's worker from settings."""

import time
from dataclasses import replace
from pathlib import Path

from transformers import AutoModel, AutoModelForSequenceClassification

from app.checkpoint.encoders import EncoderConfig
from app.checkpoint.folder import ModelFolder
from app.core.step import BuiltWorker
from app.errors import ModelError
from app.layers.linear import finish
from app.layers.methods import choose
from app.layers.methods.plain import PLAIN, adopt_all
from app.models.weights import refuse_codes
from app.settings import Settings
from app.worker.encoder_runner import EncoderRunner
from app.worker.resolve import resolve

_TOKENS = 4096
"""Of a step, unless settings say something else."""


def build_encoder(settings: Settings, path: Path, config: EncoderConfig) -> BuiltWorker:
    """Load the encoder in a folder. Raises StartupError."""
    folder, began = ModelFolder.open(path), time.monotonic()
    resolved = resolve(settings, folder)
    method = choose(folder, resolved.device, resolved.dtype)
    kind = AutoModelForSequenceClassification if config.task == "classify" else AutoModel
    refuse_codes(folder)
    try:
        model = kind.from_pretrained(path, dtype=resolved.dtype).to(resolved.device).eval().requires_grad_(False)
    except Exception as error:  # the library's, of many kinds
        raise ModelError(f"{path} cannot be loaded: {error}") from error
    if method is not PLAIN:  # such are transformers' own layers
        adopt_all(model)
        finish(model, method)
    max_len = min(config.max_len, settings.max_model_len or config.max_len)
    max_tokens = max(max_len, settings.max_num_batched_tokens or _TOKENS)
    limits = replace(
        resolved.limits,
        max_model_len=max_len,
        max_num_batched_tokens=max_tokens,
        max_num_seqs=min(settings.max_num_seqs or _TOKENS, max_tokens),
        chunked_prefill=False,
    )
    runner = EncoderRunner(model, config, resolved.device, model.config.pad_token_id or 0)
    return BuiltWorker(
        worker=runner,
        limits=limits,
        architecture=folder.architecture,
        model_impl="transformers",
        device=str(resolved.device),
        dtype=str(resolved.dtype).removeprefix("torch."),
        vocab_size=int(model.config.vocab_size),
        startup_seconds={"load_weights": time.monotonic() - began},
    )
