"""The formats of quantized weights, each in a file of its own, and the choice between them."""

from ...checkpoint.quantization import Kind, Scheme
from .awq import Awq
from .base import Encoder, Format
from .bitsandbytes import RowScaled
from .compressed import Int8, Packed
from .float8 import Float8
from .gguf import Gguf
from .gptq import Gptq

_FORMATS: dict[Kind, type[Awq | Gptq | Packed | Int8 | Float8 | Gguf | RowScaled]] = {
    "awq": Awq,
    "gptq": Gptq,
    "packed": Packed,
    "int8": Int8,
    "float8": Float8,
    "gguf": Gguf,
    "rows": RowScaled,
}


_ENCODERS: dict[Kind, type[Packed | Float8]] = {"packed": Packed, "float8": Float8}


def format_of(scheme: Scheme) -> Format:
    """What reads a weight that is stored in a scheme."""
    return _FORMATS[scheme.kind](scheme)


def encoder_of(scheme: Scheme) -> Encoder:
    """What also writes one, in a scheme that Paceline writes."""
    return _ENCODERS[scheme.kind](scheme)
