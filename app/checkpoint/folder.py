"""The one reader of a model folder: its JSON files, and what they say of the model. Without torch."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .aliases import Alias, alias_of
from .encoder_decoders import EncoderDecoderConfig, parse_encoder_decoder_config
from .encoders import TaskSetting
from .families import max_position_embeddings
from .predictors import Predictor, parse_predictor, reads_text
from .seeing import FILES, SEEING

_DTYPES = ("float32", "bfloat16", "float16")
GGUF_FILE = "model.gguf"
"""The GGUF file in a folder that the converter has written, or a link to it."""
SOURCE_TOKENIZER = "source_tokenizer.json"
"""How the texts for an encoder-decoder's encoder are cut, in a folder that the converter has written, if it is not by
tokenizer.json. Ids beyond the vocabulary stand for <unk>."""
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.gguf")


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a checkpoint. A file is read when something in it is asked for, and then only once.

    Whatever is wrong with the files raises ModelError, which names the file.
    """

    path: Path
    task: TaskSetting = "auto"
    """What the model is wanted for."""
    _content: dict[str, Any] = field(default_factory=dict, repr=False)
    """File name to content, of the JSON files that were read."""

    @classmethod
    def open(cls, path: Path, task: TaskSetting = "auto") -> "ModelFolder":
        """A folder whose config.json says everything that loading the model takes."""
        folder = cls(path, task)
        folder._check()
        return folder

    def _check(self) -> None:
        """Raise now what loading the model would raise later, after something slow, or would not notice."""
        if (self.path / "adapter_config.json").is_file():
            raise ModelError(f"{self.path} has an adapter (adapter_config.json), which is not supported")
        _ = (self.model_type, self.architecture, self.max_position_embeddings, self.quantization)

    # ------------------------------------------------------------------ files

    def read(self, name: str) -> Any:
        """The content of a JSON file; None if the folder does not have it."""
        if name not in self._content:
            self._content[name] = _read_json(self.path / name)
        return self._content[name]

    def read_object(self, name: str) -> dict[str, Any]:
        """The content of a JSON file that has to be an object; an empty one if the folder does not have the file."""
        content = self.read(name)
        if content is None:
            return {}
        if not isinstance(content, dict):
            raise ModelError(f"{self.path / name} is not a JSON object")
        return content

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, which every model has, in transformers' words."""
        if self.read("config.json") is None:
            raise ModelError(f"{self.path} has no config.json")
        raw = self.read_object("config.json")
        if self.alias is None:
            return raw
        if self.alias.renames_tensors:  # see `read_as_plain`
            raw = {name: value for name, value in raw.items() if name != "quantization_config"}
        try:
            return self.alias.config(raw)
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            raise self.unusable(error) from error

    @cached_property
    def alias(self) -> Alias | None:
        """How the files differ from those of transformers' model; None if they do not."""
        return alias_of(self.read_object("config.json"))

    @property
    def read_as_plain(self) -> dict[str, Any] | None:
        """quantization_config of a model whose tensors have other names, by which its weights become plain numbers."""
        if self.alias is None or not self.alias.renames_tensors:
            return None
        value = self.read_object("config.json").get("quantization_config")
        return value if isinstance(value, dict) else None

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold the weights: one GGUF file, or safetensors. Others may hold the same weights again."""
        if self.gguf_file is not None:
            return [self.gguf_file]
        present = sorted(self.path.glob("*.safetensors"))
        if not present:
            others = sorted(file.name for pattern in _OTHER_WEIGHTS for file in self.path.glob(pattern))
            beside = f" beside {others[0]}" if others else ""
            raise ModelError(f"{self.path} has no *.safetensors file{beside}: only safetensors weights are loaded")
        index = "model.safetensors.index.json"
        if self.read(index) is None:
            whole = self.path / "model.safetensors"
            return [whole] if whole in present else present
        files = self.read_object(index).get("weight_map")
        if not isinstance(files, dict):
            raise ModelError(f"{self.path / index} has no weight_map")
        named = sorted({self.path / str(file) for file in files.values()})
        if missing := [file.name for file in named if not file.is_file()]:
            raise ModelError(f"{self.path} has no {', '.join(missing)}, although {index} names it")
        return named

    @property
    def gguf_file(self) -> Path | None:
        """The GGUF file that holds the weights; None if safetensors files hold them."""
        if (self.quantization or {}).get("quant_method") != "gguf":
            return None
        if not (file := self.path / GGUF_FILE).is_file():
            raise ModelError(f"{self.path} has no {GGUF_FILE}, although config.json names it")
        return file

    # ------------------------------------------------------------------ what config.json says

    def unusable(self, reason: object) -> ModelError:
        """The error for a config.json that does not describe a model which can be run."""
        return ModelError(f"{self.path / 'config.json'} is not a usable model configuration: {reason}")

    @property
    def model_type(self) -> str:
        """transformers' name of the family."""
        value = self.config.get("model_type")
        if not isinstance(value, str):
            raise self.unusable(f"model_type is {value!r}")
        return value

    @property
    def architecture(self) -> str:
        """transformers' name of the model's class, such as LlamaForCausalLM."""
        names = self.config.get("architectures")
        if not isinstance(names, list) or not names:
            raise self.unusable(f"architectures is {names!r}")
        return str(names[0])

    @property
    def dtype(self) -> str:
        """The dtype that the checkpoint says it is stored in; float32 if it names none that models are run in."""
        name = str(self.config.get("dtype") or self.config.get("torch_dtype"))
        return name if name in _DTYPES else "float32"

    @property
    def text_config(self) -> dict[str, Any]:
        """The part on text of a model that also sees or hears; config.json itself for all others."""
        part = self.config.get("text_config") or self.config
        if not isinstance(part, dict):
            raise self.unusable(f"text_config is {part!r}")
        return part

    @property
    def max_position_embeddings(self) -> int | None:
        """The context length that the model was made for, in tokens; None if neither the file nor its family says.

        Of an encoder-decoder, that of its decoder.
        """
        if self.encoder_decoder is not None:
            return self.encoder_decoder.max_target_len
        try:
            return max_position_embeddings(self.config, self.text_config)
        except ValueError as error:
            raise self.unusable(error) from error

    @property
    def vocab_size(self) -> int:
        """How many token ids the model knows."""
        value = self.config.get("vocab_size") or self.text_config.get("vocab_size")
        if type(value) is not int:
            raise self.unusable(f"vocab_size is {value!r}")
        return value

    @property
    def quantization(self) -> dict[str, Any] | None:
        """quantization_config as it stands; None for a checkpoint whose weights are plain numbers."""
        value = self.config.get("quantization_config")
        if value and not isinstance(value, dict):
            raise self.unusable(f"quantization_config is {value!r}")
        return value or None

    # ------------------------------------------------------------------ what the model is for

    @property
    def reads_images(self) -> bool:
        """Whether the model reads images among its tokens, and the files that prepare them are here."""
        if self.read_object("config.json").get("model_type") not in SEEING:
            return False
        return self.alias is None and self.gguf_file is None and any(self.read(name) is not None for name in FILES)

    @cached_property
    def predictor(self) -> Predictor | None:
        """How the model answers with numbers; None for a model that generates."""
        if self.alias is not None or self.encoder_decoder is not None:
            if self.task != "auto":
                kind = self.read_object("config.json").get("model_type")
                raise self.unusable(f"task: {self.task} is not supported for a {kind}")
            return None
        try:
            return parse_predictor(self.read, self.task)
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"the files in {self.path} do not say what the model is: {error}") from error

    @cached_property
    def encoder_decoder(self) -> EncoderDecoderConfig | None:
        """How the model reads and writes, if it does so with an encoder and a decoder; else None."""
        try:
            return parse_encoder_decoder_config(self.read)
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"the model in {self.path} cannot be run: {error}") from error

    @property
    def reads_text(self) -> bool:
        """Whether the model reads text, and so has a tokenizer."""
        return reads_text(self.predictor, self.encoder_decoder)


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not readable JSON: {error}") from error
