"""Models that read an input as a whole and answer with numbers, not text: what their files say of them."""

from ..core.media import Media
from ..core.wire import Task
from .encoder_decoders import EncoderDecoderConfig
from .encoders import EncoderConfig, TaskSetting, parse_encoder_config
from .forecasters import ForecasterConfig, parse_forecaster
from .image_models import ImageModelConfig, parse_image_model
from .sentence_transformers import Read

Predictor = EncoderConfig | ForecasterConfig | ImageModelConfig


def parse_predictor(read: Read, wanted: TaskSetting = "auto") -> Predictor | None:
    """What a predictor's files say of it; None for a model that generates, unless it is wanted for something else.

    Raises ValueError, TypeError or AttributeError for what makes no sense, or is no model for any task.
    """
    return parse_forecaster(read) or parse_image_model(read) or parse_encoder_config(read, wanted)


def tasks_of(predictor: Predictor | None, described: EncoderDecoderConfig | None) -> tuple[Task, ...]:
    """What a model can do, which is neither of both if it is a decoder alone."""
    one = predictor or described
    return ("generate",) if one is None else one.tasks


def reads_text(predictor: Predictor | None, described: EncoderDecoderConfig | None) -> bool:
    """Whether a model reads or writes text, and so has a tokenizer; see `tasks_of`."""
    if described is not None:
        return described.series is None
    if isinstance(predictor, ImageModelConfig):
        return predictor.compares is not None
    return not isinstance(predictor, ForecasterConfig)


def trial_of(predictor: Predictor, max_len: int) -> Media | None:
    """A small input to try a predictor with that reads so many tokens at most; None if it reads text."""
    if isinstance(predictor, ForecasterConfig):
        return predictor.limited_to(max_len).trial(predictor.patch)
    return predictor.trial() if isinstance(predictor, ImageModelConfig) else None
