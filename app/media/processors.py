"""transformers' own processors of images, for one image at a time, without torchvision.

What a model needs of an image (`ImagePreparer.arrays`) is apart from what stands for it in a chat (`ChatImages`): a
classifier of images has no chat.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from transformers import AutoConfig, AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
from transformers.models.pixtral import image_processing_pil_pixtral as pixtral_with_pil
from transformers.models.smolvlm import processing_smolvlm as smolvlm

from ..checkpoint.folder import ModelFolder
from . import dinov3

Arrays = dict[str, NDArray[Any]]

_OTHER_SENSES = ("video", "feature_extractor", "audio")
"""Words in names of parts of processors that images do not need."""
_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Files that may name a class of processors."""
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""What a processor makes of the text beside an image."""


class InChat(NamedTuple):
    """An image where a chat shows it."""

    text: str
    """What stands in the place of the placeholder that the chat template writes."""
    num_tokens: int
    """How many of its tokens stand for places of the image."""
    arrays: Arrays
    """Arguments of the model's `get_image_features`."""


class ImagePreparer:
    """Makes of an image what a model reads, without any text."""

    placeholder, token_id = "", 0
    """There is no chat."""

    def __init__(self, folder: Path) -> None:
        """Raises what transformers raises for a folder without a processor of images."""
        auto: Any = AutoImageProcessor
        said = ModelFolder(folder).read("preprocessor_config.json") or {}
        if str(said.get("image_processor_type", "")).startswith(dinov3.NAME):
            self._arrays = dinov3.Dinov3Processor(said).arrays
        else:
            processor = auto.from_pretrained(folder, backend="pil", trust_remote_code=False)
            self._arrays = lambda image: _numbers(processor(images=[image], return_tensors="np"))

    def arrays(self, image: Image) -> Arrays:
        """Arguments of the model, by name. `image` is in RGB."""
        return self._arrays(image)

    def prepare(self, image: Image) -> InChat:
        """The same, where no text shows the image."""
        return InChat("", 0, self.arrays(image))


class ChatImages:
    """Makes of an image what stands in a chat's prompt, and what a model reads there."""

    def __init__(self, folder: Path) -> None:
        """Raises what transformers raises for a folder without a processor of chats with images."""
        self._processor = load_processor(folder)
        self._tokenizer = self._processor.tokenizer = _Listener(self._processor.tokenizer)
        self.placeholder: str = self._processor.image_token
        """What the chat template writes for an image."""
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        self.token_id = int(config.image_token_id)
        """The token that stands for a place of an image in a prompt."""

    def prepare(self, image: Image) -> InChat:
        """`image` is in RGB. The processor reads it beside a text that is nothing but the placeholder."""
        made = self._processor(text=[self.placeholder], images=[image], return_tensors="np")
        arrays = _numbers(made)
        num_tokens = int((arrays["input_ids"] == self.token_id).sum())
        return InChat(self._tokenizer.heard, num_tokens, {n: a for n, a in arrays.items() if n not in _OF_TEXT})


class _Listener:
    """Stands in the place of a tokenizer, and remembers the text that it was given: that with places for the image."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.heard = ""

    def __call__(self, text: Any, **options: Any) -> Any:
        self.heard = text if isinstance(text, str) else text[0]
        return self._tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def _numbers(made: Any) -> Arrays:
    """The arrays that a processor has made; some are still lists."""
    arrays = {name: np.asarray(value) for name, value in made.items()}
    return {name: array for name, array in arrays.items() if array.dtype.kind in "fiub"}


def load_processor(folder: Path) -> Any:
    """transformers' processor of a folder, less its parts for videos and sounds, which want torchvision and others."""
    found = _class_of(folder)

    class Seeing(found):  # type: ignore[misc, valid-type]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in found.get_attributes() if not any(word in name for word in _OTHER_SENSES)]

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **options: Any) -> Any:
            missing = dict.fromkeys(set(found.get_attributes()) - set(cls.get_attributes()))
            return super().from_args_and_dict(args, processor_dict, **options, **missing)

    Seeing.__name__ = found.__name__  # by which transformers chooses a tokenizer
    return Seeing.from_pretrained(folder, backend="pil", trust_remote_code=False)


def _class_of(folder: Path) -> Any:
    """transformers' class of a folder's processor."""
    _free_of_torchvision()
    opened = ModelFolder(folder)
    for file in _FILES:
        content = opened.read(file)
        if name := isinstance(content, dict) and content.get("processor_class"):
            return processor_class_from_name(name)
    return PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(folder, trust_remote_code=False))]


def _free_of_torchvision() -> None:
    """Make two classes loadable that ask for packages which images do not need.

    Pixtral's takes one function from the module that uses torchvision, and the one that uses PIL has the same.
    SmolVLM's asks for a package that names the numbers of a video's frames.
    """
    vars(smolvlm).update(num2words=vars(smolvlm)["num2words"] or str)
    if find_spec("torchvision") is None:
        package = "transformers.models.pixtral"
        sys.modules.setdefault(f"{package}.image_processing_pixtral", pixtral_with_pil)
        real = import_module(f"{package}.processing_pixtral").PixtralProcessor
        vars(import_module(package))["PixtralProcessor"] = real
