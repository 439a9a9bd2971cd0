"""Models that read an input as a whole and answer with numbers, not text: what their files say of them."""

from .encoders import EncoderConfig, parse_encoder_config
from .sentence_transformers import Read

Predictor = EncoderConfig


def parse_predictor(read: Read) -> Predictor | None:
    """What a predictor's files say of it; None for a model that generates.

    Raises ValueError, TypeError or AttributeError for what makes no sense, or is no model for any task.
    """
    return parse_encoder_config(read)
