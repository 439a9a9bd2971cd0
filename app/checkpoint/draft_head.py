"""What config.json says of a draft head, a folder of Paceline's own, which `paceline distill --kind head` writes."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from .folder import ModelFolder

_KIND = "paceline_draft_head"
_ARCHITECTURE = "PacelineDraftHead"


@dataclass(frozen=True)
class DraftHeadConfig:
    """The sizes of a draft head."""

    hidden_size: int
    """Of the model that it was made for; so is the next one."""
    vocab_size: int
    num_tokens: int
    """Of its shortlist, the tokens that it can guess."""
    intermediate_size: int
    norm_eps: float

    def to_json(self) -> dict[str, Any]:
        """The content of config.json."""
        return {"architectures": [_ARCHITECTURE], "model_type": _KIND, **asdict(self)}


def is_draft_head(folder: ModelFolder) -> bool:
    """Whether a folder has a draft head, and no model."""
    return folder.model_type == _KIND


def read_draft_head(folder: ModelFolder) -> DraftHeadConfig:
    """The sizes of the draft head in a folder. Raises ModelError for a config.json that does not say them."""
    found: dict[str, Any] = {field.name: folder.config.get(field.name) for field in fields(DraftHeadConfig)}
    for name, value in found.items():
        if type(value) not in (int, float) or value <= 0:
            raise folder.unusable(f"{name} is {value!r}")
    return DraftHeadConfig(**found)
