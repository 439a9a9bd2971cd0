"""What a model loses by its quantization: its perplexity over a text, and how far it is from a reference.

Both run through Paceline's own runner, so that what is measured are the kernels that serve requests. As llama.cpp's
`llama-perplexity` does, a text is cut into windows that do not overlap, and the second half of each is scored: every
scored token has at least half a window before it, and the figures of both programs can be compared.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .checkpoint.folder import ModelFolder
from .checkpoint.source import find_model
from .core.step import BuiltWorker
from .errors import InternalError, ModelError, StartupError
from .settings import Settings, load_settings
from .text.tokenizer import Tokenizer
from .worker.factory import build_worker
from .worker.runner import ModelRunner

TEXT = Path(__file__).with_suffix(".txt")
"""Prose of Paceline's documentation, as it was one day: it stays as it is, so that figures can be compared."""
_WINDOW = 512
"""Tokens. A model whose context is shorter gets windows of that."""
_ROWS_AT_ONCE = 32
"""Distributions that are compared together: in float64, each takes half a megabyte and more."""
_Scores = dict[str, Tensor]
"""Of each scored token, (tokens,) float64."""


def measure(model: str, against: str | None, text: Path | None, json_file: Path | None, **flags: Any) -> None:
    """Print the figures of a model, and write them to a file if one is named.

    `against`: the reference, which runs with the same flags but plain numbers. `text`: None for `TEXT`; `flags`:
    settings. Raises PacelineError.
    """
    if json_file:
        _check_writable(json_file)
    content = _read(text or TEXT)
    settings = [load_settings(model=model, **flags)]
    if against is not None:
        settings.append(load_settings(model=against, **flags | {"quantization": "none", "kv_dtype": "auto"}))
    folders = [find_model(each.model) for each in settings]
    if any(ModelFolder(folder).encoder_decoder is not None for folder in folders):
        raise ModelError("an encoder-decoder is not supported: its decoder continues no text that it is given")
    windows = _windows(content, folders)
    built = [_build(each, folder, windows.shape[1]) for each, folder in zip(settings, folders, strict=True)]
    if built[0].vocab_size != built[-1].vocab_size:
        sizes = " and ".join(f"{each.vocab_size:,}" for each in built)
        raise ModelError(f"--against: the vocabularies differ: they have {sizes} tokens")
    figures = {
        "text": (text or TEXT).name,
        "windows": len(windows),
        "window": windows.shape[1],
        "model": _described(settings[0], built[0]),
        "against": _described(settings[1], built[1]) if against else None,
        **_figures([_score(built, window) for window in windows.tolist()]),
    }
    _print(figures)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


# ---------------------------------------------------------------------- what is run


def _check_writable(file: Path) -> None:
    """Measuring takes minutes: say before that the figures cannot be kept."""
    try:
        with file.open("a"):
            pass
    except OSError as error:
        raise StartupError(f"--json: {file} cannot be written to: {error.strerror}") from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise StartupError(f"--text: {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StartupError(f"--text: {file} is not UTF-8: {error}") from error


def _windows(text: str, folders: Sequence[Path]) -> Tensor:
    """Token ids (windows, tokens) of a text, without its end if that fills no window.

    Where the tokenizer begins a text with a token such as BOS, this takes the place of each window's first token.
    """
    models = [ModelFolder(folder) for folder in folders]
    for model in models:
        if model.predictor is not None:
            raise ModelError(f"{model.path} is an encoder, which predicts no tokens")
    size = min(_WINDOW, *(model.max_position_embeddings or _WINDOW for model in models))
    tokenizers = [Tokenizer(folder) for folder in folders]
    token_ids, *others = [tokenizer.encode(text) for tokenizer in tokenizers]
    if any(other != token_ids for other in others):
        raise ModelError("--against: the vocabularies differ: the text becomes other tokens")
    count = len(token_ids) // size
    if not count:
        raise StartupError(f"--text: {len(token_ids)} tokens are too few: a window has {size}")
    windows = torch.tensor(token_ids[: count * size]).view(count, size)
    if token_ids[0] in tokenizers[0].special_ids:
        windows[:, 0] = token_ids[0]
    return windows


def _build(settings: Settings, folder: Path, window: int) -> BuiltWorker:
    """A runner with memory for one window, which is one step."""
    limits = {"max_model_len": window, "max_num_seqs": 1, "max_num_batched_tokens": window}
    num_blocks = max(2, -(-window // settings.block_size))
    return build_worker(
        settings.model_copy(update={**limits, "num_kv_blocks": num_blocks, "load_format": "auto"}), folder
    )


# ---------------------------------------------------------------------- scores and figures


@torch.inference_mode()
def _score(built: Sequence[BuiltWorker], window: list[int]) -> _Scores:
    """Scores of the tokens in the second half of a window, by a model, and its reference if there is one."""
    first, logits = len(window) // 2, []
    for each in built:
        assert isinstance(each.worker, ModelRunner)
        logits.append(each.worker.logits_of(window[:-1], first))
    targets = torch.tensor(window[first + 1 :], device=logits[0].device)
    pieces = zip(*(torch.split(each, _ROWS_AT_ONCE) for each in (targets, *logits)), strict=True)
    return _joined([_score_piece(*piece) for piece in pieces])


def _score_piece(targets: Tensor, logits: Tensor, of_reference: Tensor | None = None) -> _Scores:
    """Scores of tokens `targets` (n,), where a model, and its reference, have these logits (n, vocab)."""
    log_q = torch.log_softmax(logits.double(), -1)
    scores = {"surprise": -log_q.gather(1, targets[:, None])[:, 0]}
    if of_reference is not None:
        log_p = torch.log_softmax(of_reference.double(), -1)
        scores["surprise_of_reference"] = -log_p.gather(1, targets[:, None])[:, 0]
        scores["divergence"] = (log_p.exp() * (log_p - log_q)).sum(-1)
        scores["same_choice"] = (log_p.argmax(-1) == log_q.argmax(-1)).double()
    return scores


def _joined(parts: Sequence[_Scores]) -> _Scores:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _figures(windows: Sequence[_Scores]) -> dict[str, float]:
    """What all windows say together. Raises InternalError for logits that are no numbers."""
    scores = _joined(windows)
    if not all(values.isfinite().all() for values in scores.values()):
        raise InternalError("the models' log probabilities are not all numbers")
    surprise = scores["surprise"]
    figures: dict[str, float] = {"scored_tokens": len(surprise), "perplexity": float(surprise.mean().exp())}
    if "divergence" in scores:
        more = surprise - scores["surprise_of_reference"]
        ratio = float(more.mean().exp())
        figures |= {
            "perplexity_of_reference": float(scores["surprise_of_reference"].mean().exp()),
            "perplexity_ratio": ratio,
            "perplexity_ratio_error": ratio * float(more.std()) / len(more) ** 0.5,  # standard error
            "kl_divergence": float(scores["divergence"].mean()),
            "kl_divergence_p99": float(scores["divergence"].quantile(0.99)),
            "same_greedy_token": float(scores["same_choice"].mean()),
        }
    return figures


# ---------------------------------------------------------------------- what is told


def _described(settings: Settings, built: BuiltWorker) -> dict[str, str]:
    return {
        "model": settings.model,
        "architecture": built.architecture,
        "model_impl": built.model_impl,
        "quantization": settings.quantization,
        "dtype": built.dtype,
        "kv_dtype": settings.kv_dtype,
        "device": built.device,
    }


def _print(figures: dict[str, Any]) -> None:
    console = Console()
    for role in ("model", "against"):
        if told := figures[role]:
            how = f"{told['model_impl']}, quantization {told['quantization']}, {told['dtype']} on {told['device']}"
            if told["kv_dtype"] != "auto":
                how += f", K and V in {told['kv_dtype']}"
            console.print(
                f"{role:8} [bold]{told['model']}[/bold]: {told['architecture']}, {how}", highlight=False, soft_wrap=True
            )
    table = Table(box=SIMPLE, show_header=False)
    windows = f"of {figures['text']}, in {figures['windows']} windows of {figures['window']}"
    table.add_row("tokens scored", f"{figures['scored_tokens']:,}", windows)
    table.add_row("perplexity", f"{figures['perplexity']:.4f}")
    if figures["against"]:
        table.add_row("the reference's", f"{figures['perplexity_of_reference']:.4f}")
        error = f"± {figures['perplexity_ratio_error']:.4f}"
        table.add_row("ratio of both", f"{figures['perplexity_ratio']:.4f}", error)
        table.add_row("mean KL divergence", f"{figures['kl_divergence']:.6f}", "nats, of reference to model")
        table.add_row("its 99th percentile", f"{figures['kl_divergence_p99']:.6f}")
        table.add_row("equal greedy tokens", f"{figures['same_greedy_token']:.2%}")
    console.print(table)
