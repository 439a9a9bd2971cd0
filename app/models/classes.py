"""Which of transformers' classes generate text."""

from typing import Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
)

from ..checkpoint.encoder_decoders import EncoderDecoderConfig
from ..checkpoint.folder import ModelFolder

_MAPPINGS: tuple[tuple[Any, Any], ...] = (
    (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    (AutoModelForMultimodalLM, MODEL_FOR_MULTIMODAL_LM_MAPPING),  # they see or hear, and read
)


def auto_class(config: Any, architecture: str) -> Any | None:
    """What loads a model with a config that generates text; None if there is no such model.

    Some configs are of two models, of which one sees: `architecture` in config.json says which of them it is.
    """
    by_name = {mapping[type(config)].__name__: auto for auto, mapping in _MAPPINGS if type(config) in mapping}
    return by_name.get(architecture, next(iter(by_name.values()), None))


def encoder_decoder_class(described: EncoderDecoderConfig) -> Any:
    """What loads an encoder-decoder."""
    return AutoModelForSpeechSeq2Seq if described.hears else AutoModelForSeq2SeqLM


def config_of(folder: ModelFolder) -> Any:
    """transformers' config of a folder."""
    if folder.alias is not None:
        kind: Any = CONFIG_MAPPING[folder.model_type]
        return kind.from_dict(folder.config)
    # The default of trust_remote_code is not False, but to ask on the terminal.
    return AutoConfig.from_pretrained(folder.path, trust_remote_code=False)
