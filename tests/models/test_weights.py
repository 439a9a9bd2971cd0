"""Tensors of a checkpoint are matched by name, checked, cut and copied."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from app.checkpoint.families import parse_decoder_config
from app.checkpoint.folder import ModelFolder
from app.engine.build import build_engine
from app.errors import ModelError
from app.layers.formats.codes import Codes, quantize
from app.layers.linear import Linear, MergedLinear, attach
from app.layers.methods.plain import PLAIN
from app.layers.methods.quantized import Rounded
from app.layers.sources import Target
from app.models import filling
from app.models.decoder import Decoder
from app.models.weights import load_weights
from app.settings import load_settings
from app.worker.encoder_factory import build_encoder
from tests.models.families import DECODER, write_checkpoint
from tests.worker.test_encoder_runner import write_encoder


class Shard(nn.Module):
    """A part of a matrix, as one of several GPUs keeps it; and codes in their own dtype."""

    def __init__(self, rows: slice | None, columns: slice | None, shape: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.codes = nn.Parameter(torch.empty(4, dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(()))
        self.rows, self.columns = rows, columns

    def sources(self, name: str) -> dict[str, Target]:
        return {
            f"{name}.weight": Target(self.weight.data, self.rows, self.columns),
            "beside.codes": Target(self.codes.data),
            f"{name}.scale": Target(self.scale.data),
        }


def write(folder: Path, tensors: dict[str, Tensor]) -> ModelFolder:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return ModelFolder(folder)


@pytest.mark.parametrize(
    ("rows", "columns", "shape"),
    [
        (None, None, (50, 12)),
        (slice(10, 40), None, (30, 12)),
        (None, slice(3, 9), (50, 6)),
        (slice(7, 50), slice(0, 5), (43, 5)),
    ],
)
def test_a_part_is_cut_out_piece_by_piece(
    rows: slice | None, columns: slice | None, shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_PIECE_BYTES", 150)
    whole = torch.randn(50, 12)
    codes = torch.tensor([-128, -1, 0, 127], dtype=torch.int8)
    folder = write(tmp_path, {"model.a.weight": whole, "beside.codes": codes, "a.scale": torch.tensor(0.5)})
    model = nn.ModuleDict({"a": Shard(rows, columns, shape)})
    load_weights(model, folder)
    shard = model["a"]
    assert torch.equal(shard.weight, whole[rows or slice(None), columns or slice(None)])
    assert torch.equal(shard.codes, codes)
    assert shard.scale.item() == 0.5


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a.weight": torch.zeros(50, 12)})
    model = nn.ModuleDict({"a": Shard(slice(40, 60), None, (20, 12))})
    with pytest.raises(ModelError, match=r"a\.weight has shape \(10, 12\), not \(20, 12\)"):
        load_weights(model, folder)


def test_merged_layers_are_filled_part_by_part_or_whole(tmp_path: Path) -> None:
    model = nn.ModuleDict({"parts": MergedLinear(4, (3, 2), True, ("x", "y")), "whole": MergedLinear(4, (3, 2), False)})
    attach(model, lambda *_: PLAIN)
    x, y = torch.randn(3, 4), torch.randn(2, 4)
    biases = {"x.bias": torch.randn(3), "y.bias": torch.randn(2)}
    load_weights(model, write(tmp_path, {"x.weight": x, "y.weight": y, **biases, "whole.weight": torch.ones(5, 4)}))
    assert torch.equal(model["parts"].weight, torch.cat((x, y)))
    assert torch.equal(model["parts"].bias, torch.cat(tuple(biases.values())))
    assert torch.equal(model["whole"].weight, torch.ones(5, 4))


@pytest.mark.parametrize("names", [("a",), ("b",), ("a", "b")])
def test_one_of_several_names_of_the_same_memory_is_enough(names: tuple[str, ...], tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Embedding(3, 4), "b": Linear(4, 3, bias=False)})
    model["b"].tied = model["a"].weight.data
    attach(model, lambda *_: PLAIN)
    tensors = {f"{name}.weight": torch.full((3, 4), float(index)) for index, name in enumerate(names)}
    load_weights(model, write(tmp_path, tensors))
    assert torch.equal(model["a"].weight, torch.zeros(3, 4))
    assert torch.equal(model["b"].weight, torch.zeros(3, 4))
    with pytest.raises(ModelError, match=r"lacks 1 tensors of the model, a\.weight for one"):
        load_weights(model, write(tmp_path, {}))


class AtOnce(ThreadPoolExecutor):
    """Readers that are done before anything else happens."""

    def submit(self, load: Callable[[], None]) -> "Future[None]":  # type: ignore[override]
        done: Future[None] = Future()
        done.set_result(load())
        return done


def test_layers_are_rounded_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a layer is rounded, little is read that comes behind it, and the plain weights before it are freed."""
    write_checkpoint("Llama", {"num_hidden_layers": 8}, tmp_path)
    folder, ahead, load = ModelFolder.open(tmp_path), 100_000, filling.Piece.load
    model = Decoder(parse_decoder_config(folder.config), 64)
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    unread = (tmp_path / "model.safetensors").stat().st_size
    rounded = 0

    def note_and_load(piece: filling.Piece) -> None:
        nonlocal unread
        unread -= piece.memory.nbytes
        load(piece)

    def to(layer: Linear) -> Codes:
        nonlocal rounded
        assert layer is layers[rounded]
        assert [weight.expired() for weight in weights] == [index < rounded for index in range(len(weights))]
        rounded += 1
        behind = sum(layer.weight.nbytes for layer in layers[rounded:])
        assert behind - unread <= ahead
        return quantize(layer.weight.data, 8, 16)

    attach(model, lambda *_: Rounded(to, lambda *_: PLAIN, PLAIN, torch.device("cpu")))
    weights = [StorageWeakRef(layer.weight.untyped_storage()) for layer in layers]
    monkeypatch.setattr(filling, "_AHEAD_BYTES", ahead)
    monkeypatch.setattr(filling, "ThreadPoolExecutor", AtOnce)
    monkeypatch.setattr(filling.Piece, "load", note_and_load)
    load_weights(model, folder)
    assert rounded == len(layers) == 8 * 4 + 1


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("impl", ["decoder", "generic"])
def test_codes_are_not_taken_for_numbers(impl: str, dtype: torch.dtype, tmp_path: Path) -> None:
    write_checkpoint("Llama", DECODER["Llama"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    save_file(tensors | {name: tensors[name].to(dtype)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    settings = load_settings(device="cpu", dtype="float32", num_kv_blocks=64, model_impl=impl)
    with pytest.raises(ModelError, match=rf"{name} is of dtype (I8|U8|F8_E4M3)"):
        build_engine(settings, tmp_path)


def test_codes_of_an_encoder_are_not_taken_for_numbers(tmp_path: Path) -> None:
    write_encoder(tmp_path, "Bert", "Model")
    config = ModelFolder(tmp_path).predictor
    assert config is not None
    tensors = load_file(tmp_path / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name} is of dtype I8"):
        build_encoder(load_settings(device="cpu"), tmp_path, config)


def test_experts_may_be_one_tensor_of_all(tmp_path: Path) -> None:
    model = write_checkpoint("Olmoe", DECODER["Olmoe"], tmp_path)
    file = tmp_path / "model.safetensors"
    fused = {name: tensor.clone() for name, tensor in model.state_dict().items() if ".experts." in name}
    assert {name.rpartition(".")[2] for name in fused} == {"gate_up_proj", "down_proj"}

    def filled() -> dict[str, Tensor]:
        decoder = Decoder(parse_decoder_config(ModelFolder(tmp_path).config), 64)
        attach(decoder, lambda _layer, _names: PLAIN)
        load_weights(decoder, ModelFolder(tmp_path))
        return {name: tensor for name, tensor in decoder.named_parameters() if ".experts." in name}

    of_each = filled()
    for name, tensor in fused.items():
        assert torch.equal(of_each[f"{name.removeprefix('model.')}.weight"], tensor.flatten(0, 1))
    others = {name: tensor for name, tensor in load_file(file).items() if ".experts." not in name}
    save_file(others | fused, file)
    assert all(torch.equal(tensor, of_each[name]) for name, tensor in filled().items())
    del fused["model.layers.1.mlp.experts.down_proj"]
    save_file(others | fused, file)
    with pytest.raises(ModelError, match=r"lacks 8 tensors of the model, layers\.1\.mlp\.experts"):
        filled()
