"""Images of all shapes at once get the numbers that transformers gives for each alone, from files that its own
processor has read."""

import json
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor

from app.check_model import check
from app.checkpoint.folder import ModelFolder
from app.checkpoint.image_models import ImageModelConfig
from app.core.media import Array, Media
from app.core.step import BuiltWorker, SchedulerOutput
from app.errors import ModelError, StartupError
from app.media.decode import decode
from app.media.processors import ImagePreparer
from app.settings import load_settings
from app.worker.image_factory import build_image_model
from app.worker.image_reader import ImageReader
from app.worker.predictor_parts import request_of

_TRANSFORMER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_VIT = _TRANSFORMER | {"image_size": 32, "patch_size": 8}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}
_TEXT = _TRANSFORMER | {"vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 98, "bos_token_id": 97}
MODELS: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": _VIT,
    "ViTModel": _VIT,
    "DeiTForImageClassificationWithTeacher": _VIT,
    "Dinov2ForImageClassification": _VIT,
    "Dinov2Model": _VIT,
    "DINOv3ViTModel": _VIT | {"num_register_tokens": 2},
    "DINOv3ConvNextModel": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "ConvNextForImageClassification": _STAGES | {"num_stages": 2},
    "ResNetForImageClassification": _STAGES | {"embedding_size": 8, "layer_type": "basic"},
    "ResNetModel": _STAGES | {"embedding_size": 8, "layer_type": "basic"},
    "SwinForImageClassification": {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1],
                                   "num_heads": [2, 2], "window_size": 4},
    "MobileNetV2ForImageClassification": {"image_size": 32, "depth_multiplier": 0.25},
    "SiglipVisionModel": _VIT,
    "Siglip2ForImageClassification": {"vision_config": _TRANSFORMER | {"num_patches": 16, "patch_size": 16},
                                      "text_config": _TEXT},
    "CLIPModel": {"vision_config": _VIT, "text_config": _TEXT, "projection_dim": 24},
    "SiglipModel": {"vision_config": _VIT, "text_config": _TEXT | {"pad_token_id": 1}},
    "Siglip2Model": {"vision_config": _TRANSFORMER | {"num_patches": 16, "patch_size": 16},
                     "text_config": _TEXT | {"pad_token_id": 1}},
}  # fmt: skip
LABELS = {0: "cat", 1: "dog", 2: "neither"}


def write_image_model(folder: Path, architecture: str, **of_text: Any) -> Any:
    """A random model of images, saved to a folder with a processor; transformers' own model in float32."""
    kind = getattr(transformers, architecture)
    labels = {"id2label": LABELS} if "Classification" in architecture else {}
    torch.manual_seed(0)
    options = deepcopy(MODELS[architecture])
    if of_text:
        options["text_config"] |= of_text
    model = kind(kind.config_class(**options, **labels))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * (0.2 if parameter.dim() > 1 else 0.3)
    model.save_pretrained(folder)
    family = model.config.model_type
    if architecture.startswith("Siglip2"):
        processor = {"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 16, "patch_size": 16}
    else:
        kinds = {"resnet": "ConvNext", "regnet": "ConvNext", "swin": "ViT", "swinv2": "ViT", "dinov2": "Bit",
                 "dinov2_with_registers": "Bit", "siglip_vision_model": "Siglip", "siglip": "Siglip", "clip": "CLIP",
                 "clip_vision_model": "CLIP", "vit": "ViT", "deit": "DeiT", "beit": "Beit", "convnext": "ConvNext",
                 "convnextv2": "ConvNext", "dinov3_vit": "DINOv3ViT", "dinov3_convnext": "DINOv3ViT",
                 "mobilenet_v2": "MobileNetV2", "efficientnet": "EfficientNet"}  # fmt: skip
        side = {"shortest_edge": 32} if kinds[family] in ("Bit", "CLIP", "ConvNext") else {"height": 32, "width": 32}
        processor = {"image_processor_type": f"{kinds[family]}ImageProcessor", "size": side,
                     "crop_size": {"height": 32, "width": 32}}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model.float().eval()


def make_files() -> list[bytes]:
    """PNG and JPEG files of many shapes."""
    rng, files = np.random.default_rng(0), []
    for index, (height, width) in enumerate([(32, 32), (40, 60), (100, 33), (7, 9), (64, 64), (250, 300), (33, 100)]):
        ramp = np.linspace(0, 200, height * width).reshape(height, width, 1)
        pixels = (ramp + rng.integers(0, 55, (height, width, 3))).astype(np.uint8)
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG" if index % 2 else "JPEG")
        files.append(file.getvalue())
    return files


FILES = make_files()


def config_of(folder: Path) -> ImageModelConfig:
    config = ModelFolder(folder).predictor
    assert isinstance(config, ImageModelConfig)
    return config


def prepared(folder: Path, config: ImageModelConfig) -> list[Media]:
    preparer = ImagePreparer(folder)
    arrays = [preparer.arrays(decode(file, 10**6)) for file in FILES]
    return [config.image(b"", {name: Array.of(array) for name, array in one.items()}) for one in arrays]


def run(built: BuiltWorker, media: list[Media]) -> list[NDArray[np.float32]]:
    """The numbers of inputs that are computed in one step."""
    requests = [replace(request_of(one), row=row) for row, one in enumerate(media)]
    rows = list(range(len(requests)))
    step = SchedulerOutput(requests, [], rows, [str(row) for row in rows], [one.num_tokens for one in media])
    vectors = built.worker.submit(step).result().vectors
    return [np.frombuffer(vectors[row], np.float32) for row in rows]


def read_by_dinov3(image: Image.Image) -> torch.Tensor:
    """What transformers' processor does, with the one function of torch's that torchvision calls."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    resized = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]
    return (resized - mean) / std


def inputs_of(folder: Path, file: bytes) -> Any:
    """transformers' own reading of a file."""
    processor: Any = AutoImageProcessor
    image = Image.open(BytesIO(file)).convert("RGB")
    if "DINOv3" in (folder / "preprocessor_config.json").read_text():
        return {"pixel_values": read_by_dinov3(image)}
    made = processor.from_pretrained(folder, backend="pil")(images=image, return_tensors="pt")
    return {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}


COMPARING = ["CLIPModel", "SiglipModel", "Siglip2Model"]


@torch.inference_mode()
@pytest.mark.parametrize("architecture", [name for name in MODELS if name not in COMPARING])
def test_images(architecture: str, tmp_path: Path) -> None:
    oracle = write_image_model(tmp_path, architecture)
    config = config_of(tmp_path)
    built = build_image_model(load_settings(device="cpu"), tmp_path, config)
    for file, numbers in zip(FILES, run(built, prepared(tmp_path, config)), strict=True):
        output = oracle(**inputs_of(tmp_path, file))
        expected = output.pooler_output[0].flatten() if config.task == "embed" else output.logits[0]
        np.testing.assert_allclose(numbers, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@torch.inference_mode()
@pytest.mark.parametrize("architecture", COMPARING)
def test_images_beside_texts(architecture: str, tmp_path: Path) -> None:
    oracle = write_image_model(tmp_path, architecture)
    config = config_of(tmp_path)
    built = build_image_model(load_settings(device="cpu"), tmp_path, config)
    texts = [[97, 5, 98], [97, *range(5, 18), 98], [97, 98], [97, 7, 9, 8, 98]]
    images = prepared(tmp_path, config)
    found = run(built, [*images[:3], *map(config.text, texts), *images[3:]])
    of_images, of_texts = [*found[:3], *found[7:]], found[3:7]
    for file, text, image, words in zip(FILES, texts, of_images, of_texts, strict=False):
        if architecture != "CLIPModel":  # as transformers' processor pads them
            text = text + [1] * (16 - len(text))
        output = oracle(**inputs_of(tmp_path, file), input_ids=torch.tensor([text]))
        unit = [one[:-2] / np.linalg.norm(one[:-2]) for one in (image, words)]
        np.testing.assert_allclose(unit[0], output.image_embeds[0], atol=1e-5)
        np.testing.assert_allclose(unit[1], output.text_embeds[0], atol=1e-5)
        scale, bias = image[-2:]
        np.testing.assert_allclose(
            unit[0] @ unit[1] * scale + bias, output.logits_per_image[0, 0], rtol=1e-4, atol=1e-5
        )


@torch.inference_mode()
def test_the_first_token_stands_for_an_image_where_nothing_pools(tmp_path: Path) -> None:
    oracle = write_image_model(tmp_path, "ViTModel")
    tensors = {name: tensor for name, tensor in oracle.state_dict().items() if not name.startswith("pooler.")}
    save_file(tensors, tmp_path / "model.safetensors")
    config = config_of(tmp_path)
    built = build_image_model(load_settings(device="cpu"), tmp_path, config)
    (numbers,) = run(built, prepared(tmp_path, config)[:1])
    expected = oracle(**inputs_of(tmp_path, FILES[0])).last_hidden_state[0, 0]
    np.testing.assert_allclose(numbers, expected, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    write_image_model(tmp_path, "ViTForImageClassification")
    for wrong, match in (({"quantization": "int8"}, "quantization: "), ({"max_model_len": 7}, "max_model_len: ")):
        with pytest.raises(StartupError, match=match):
            build_image_model(load_settings(device="cpu", **wrong), tmp_path, config_of(tmp_path))
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"num_channels": 1}))
    with pytest.raises(ModelError, match="images with 1 channels are not supported"):
        config_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(raw | {"architectures": ["ImageGPTForImageClassification"]}))
    with pytest.raises(ModelError, match="does not run as a model of images: "):
        build_image_model(load_settings(device="cpu"), tmp_path, config_of(tmp_path))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"preprocessor_config\.json, which says how images are prepared, is missing"):
        config_of(tmp_path)


def test_check_model_compares_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for architecture in ("ResNetForImageClassification", "Siglip2Model"):
        folder = tmp_path / architecture
        write_image_model(folder, architecture)
        (folder / "tokenizer.json").write_text("{}")
        assert check(str(folder))
        assert "transformers: agrees" in capsys.readouterr().out
    original = ImageReader.read
    monkeypatch.setattr(ImageReader, "read", lambda self, requests: [one * 1.001 for one in original(self, requests)])
    assert not check(str(folder))
    assert "transformers: DIFFERS" in capsys.readouterr().out
