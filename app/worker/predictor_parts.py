"""What the factories of predictors have in common."""

import time
from dataclasses import replace

from ..checkpoint.folder import ModelFolder
from ..core.media import Media
from ..core.request import Extras
from ..core.sampling import SamplingParams
from ..core.step import BuiltWorker, NewRequest
from ..errors import StartupError
from ..settings import Settings
from .predictive_runner import PredictiveRunner
from .resolve import Resolved

_TOKENS = 4096
"""Of a step, unless settings say something else."""


def refuse_settings(settings: Settings, what: str) -> None:
    """StartupError for settings that mean something for other models, and nothing for one that does `what`."""
    if settings.batch_invariant:
        raise StartupError(f"batch_invariant: models that generate can be, and this one {what}")
    if settings.quantization not in ("auto", "none"):
        raise StartupError(f"quantization: a model that {what} keeps its weights as plain numbers")


def built_of(
    settings: Settings,
    folder: ModelFolder,
    resolved: Resolved,
    runner: PredictiveRunner,
    max_len: int,
    began: float,
    vocab_size: int = 0,
) -> BuiltWorker:
    """A worker around a model that reads `max_len` tokens at most. `began`: when its loading did. `vocab_size`: 0 for
    a model that reads no text."""
    max_tokens = max(max_len, settings.max_num_batched_tokens or _TOKENS)
    limits = replace(
        resolved.limits,
        max_model_len=max_len,
        max_num_batched_tokens=max_tokens,
        max_num_seqs=min(settings.max_num_seqs or _TOKENS, max_tokens),
        chunked_prefill=False,
    )
    return BuiltWorker(
        worker=runner,
        limits=limits,
        architecture=folder.architecture,
        model_impl="transformers",
        device=str(resolved.device),
        dtype=str(resolved.dtype).removeprefix("torch."),
        vocab_size=vocab_size,
        startup_seconds={"load_weights": time.monotonic() - began},
    )


def request_of(media: Media) -> NewRequest:
    """A request to try a model with."""
    return NewRequest(
        row=0,
        token_ids=[0] * media.num_tokens,
        num_prompt_tokens=media.num_tokens,
        block_ids=[],
        sampling=SamplingParams(max_tokens=0, seed=0),
        extras=Extras(media=media),
    )
