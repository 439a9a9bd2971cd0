"""The formats of quantized weights, each in a file of its own, and the choice between them."""

from ...checkpoint.quantization import Kind, Scheme
from .awq import Awq
from .base import Format
from .compressed import Int8, Packed
from .float8 import Float8
from .gguf import Gguf
from .gptq import Gptq

_FORMATS: dict[Kind, type[Awq | Gptq | Packed | Int8 | Float8 | Gguf]] = {
    "awq": Awq,
    "gptq": Gptq,
    "packed": Packed,
    "int8": Int8,
    "float8": Float8,
    "gguf": Gguf,
}


def format_of(scheme: Scheme) -> Format:
    """What reads a weight that is stored in a scheme."""
    return _FORMATS[scheme.kind](scheme)
