"""From a folder with a checkpoint to a model that is ready to run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..attention.layer import Attention, CrossAttention
from ..checkpoint.families import FAMILIES, NotCarriedError, parse_decoder_config
from ..checkpoint.folder import ModelFolder
from ..checkpoint.quantization import embeds_by_head
from ..errors import ModelError
from ..layers.linear import Choice, Linear, attach, change
from ..layers.methods import Methods, choose
from ..layers.methods.mxfp4 import Mxfp4
from ..layers.methods.plain import PLAIN
from ..layers.recurrent import Recurrent
from ..settings import ModelSettings
from .decoder import Decoder
from .noise import fill_with_noise
from .weights import has_own_head, load_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, and its attention layers in order.

    `model` has `forward` and `compute_logits`, with the signatures of `Decoder`'s.
    """

    model: nn.Module
    impl: str
    vocab_size: int
    hidden_size: int
    """Of what the last layer reads."""
    attention_layers: list[Attention]
    recurrent_layers: list[Recurrent]
    """In order."""
    continues_prompts: bool
    """Whether a prompt may be computed in several steps."""
    cross_layers: list[CrossAttention] = field(default_factory=list)
    """Of an encoder-decoder, in order."""
    reads_images: bool = False
    """Whether the model is a `SeeingModel`."""


def load_model(
    folder: ModelFolder,
    settings: ModelSettings,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    takes_adapters: bool = False,
    reads_images: bool = False,
) -> LoadedModel:
    """Load a checkpoint with the hand-written decoder if it can run it, else through transformers.

    `reads_images`: keep the part that sees, of one of the families `app.checkpoint.seeing.SEEING`.

    Raises ModelError for what cannot be loaded.
    """
    # Before anything slow, since it may refuse the checkpoint.
    methods = choose(folder, device, dtype, settings.quantization, settings.batch_invariant)
    if folder.encoder_decoder is not None:
        return _load_encoder_decoder(folder, settings, methods, dtype, device, takes_adapters)
    model: Any = None
    if settings.model_impl != "generic":
        model = _try_decoder(folder, settings, methods.choice, dtype, device, max_model_len)
    used = "decoder" if model is not None else "generic"
    if model is None:
        if settings.batch_invariant:
            raise ModelError(
                "batch_invariant: only the decoder computes a token alike in any batch, and model_impl generic runs "
                f"{folder.architecture}"
            )
        # Imported here because importing transformers takes seconds.
        from .generic import load_generic

        is_dummy = settings.load_format == "dummy"
        divide: Any = None
        if reads_images:
            from .seeing import divide
        model = load_generic(folder, methods, dtype, device, max_model_len, takes_adapters, is_dummy, divide)
        change(model, PLAIN, methods.plain)
    if settings.batch_invariant:
        _check_invariance(model)
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    recurrent = [module for module in model.modules() if isinstance(module, Recurrent)]
    continues = used == "decoder" or model.continues_prompts
    sizes = model.vocab_size, model.hidden_size
    is_seeing = reads_images and used == "generic"
    return LoadedModel(
        model.eval().requires_grad_(False), used, *sizes, layers, recurrent, continues, reads_images=is_seeing
    )


def _load_encoder_decoder(
    folder: ModelFolder,
    settings: ModelSettings,
    methods: Methods,
    dtype: torch.dtype,
    device: torch.device,
    takes_adapters: bool,
) -> LoadedModel:
    kind = folder.model_type
    if settings.model_impl == "decoder":
        raise ModelError(f"model_impl: the decoder does not run {kind}, which is an encoder-decoder")
    if settings.batch_invariant:
        raise ModelError(f"batch_invariant: {kind} is an encoder-decoder, whose tokens depend on the batch")
    if takes_adapters:
        raise ModelError(f"lora: {kind} is an encoder-decoder, which takes no adapters")
    from .encoder_decoder import load_encoder_decoder  # importing transformers takes seconds

    model = load_encoder_decoder(folder, methods, dtype, device, settings.load_format == "dummy")
    change(model, PLAIN, methods.plain)
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    sizes = model.vocab_size, model.hidden_size
    continues = model.continues_prompts
    return LoadedModel(model, "generic", *sizes, layers, [], continues, model.cross_layers)


def _check_invariance(model: nn.Module) -> None:
    for path, layer in model.named_modules():
        if isinstance(layer, Linear) and isinstance(layer.method, Mxfp4):
            raise ModelError(
                f"batch_invariant: products of {path} with numbers in MXFP4 depend on the batch; with quantization "
                "none they become plain numbers"
            )
        if isinstance(layer, Linear) and not layer.method.is_batch_invariant:
            raise ModelError(
                f"batch_invariant: products of {path} depend on the batch. On a CPU weights have to be quantized "
                "(quantization int8 or int4), and on a GPU dtype has to be bfloat16 or float16"
            )


def _try_decoder(
    folder: ModelFolder,
    settings: ModelSettings,
    choice: Choice,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
) -> Decoder | None:
    is_dummy = settings.load_format == "dummy"
    try:
        with torch.device(device), default_dtype(dtype):
            model = make_decoder(folder, choice, max_model_len, not is_dummy)
    except NotCarriedError as reason:
        if settings.model_impl == "decoder":
            raise ModelError(f"the decoder does not carry {reason}; try --model-impl generic") from None
        log.info("using transformers' model: the decoder does not carry %s", reason)
        return None
    if is_dummy:
        fill_with_noise(model, device)
    else:
        load_weights(model, folder)
    return model


def make_decoder(folder: ModelFolder, choice: Choice, max_model_len: int, has_weights: bool = True) -> Decoder:
    """The decoder for a folder, to be filled, with torch's default dtype and on its default device.

    NotCarriedError if it cannot run the model. ModelError for a config.json that makes no sense.
    """
    kind = folder.model_type
    if kind not in FAMILIES or not folder.architecture.endswith("ForCausalLM"):
        raise NotCarriedError(f"{folder.architecture} ({kind})")
    try:
        config = parse_decoder_config(folder.config)
        if config.tie_word_embeddings and has_weights and has_own_head(folder):
            config = replace(config, tie_word_embeddings=False)
        model = Decoder(config, max_model_len, has_weights and embeds_by_head(folder.quantization))
        attach(model, choice)
    except (ValueError, LookupError, ArithmeticError, TypeError, AttributeError) as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise folder.unusable(reason) from error
    return model


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have this dtype."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)
