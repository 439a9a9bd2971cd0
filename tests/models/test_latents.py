"""Keys and values that are kept as latents."""

from pathlib import Path

import pytest
import torch

from app.checkpoint.folder import ModelFolder
from app.models.latents import Latents
from app.models.loader import load_model
from app.settings import load_settings
from tests.models.families import GENERIC, write_checkpoint

ALIKE = {name: value for name, value in GENERIC["DeepseekV3"].items() if "rank" in name or "head_dim" in name}


@pytest.mark.parametrize(
    ("family", "options", "are_kept"),
    [
        ("DeepseekV3", {}, True),
        ("DeepseekV3", {"q_lora_rank": None, "rope_interleave": False}, True),
        ("DeepseekV3", {"kv_lora_rank": 80}, False),  # more numbers than keys and values have
        ("MiniCPM3", ALIKE, True),
    ],
)
def test_layers_keep_fewer_numbers(family: str, options: dict[str, object], are_kept: bool, tmp_path: Path) -> None:
    """What comes of them is tested where models are compared with transformers."""
    write_checkpoint(family, GENERIC["DeepseekV3"] | options if family == "DeepseekV3" else options, tmp_path)
    folder, device = ModelFolder.open(tmp_path), torch.device("cpu")
    loaded = load_model(folder, load_settings(model=str(tmp_path)), torch.float32, device, 64)
    assert any(isinstance(module, Latents) for module in loaded.model.modules()) == are_kept
    assert not are_kept or not any("kv_b_proj" in name for name, _ in loaded.model.named_modules())
    for layer in loaded.attention_layers:
        config = layer.config
        numbers = config.num_kv_heads * (config.head_dim + config.v_head_dim)
        assert numbers == (16 + 8 + 16 if are_kept else 4 * (16 + 8 + 12))
        assert config.scale == pytest.approx((16 + 8) ** -0.5)


def test_a_latent_stands_for_the_keys_and_values_of_all_heads() -> None:
    """In float64: attention over latents is that over what they expand to."""
    tokens, heads, rank, plain, rotated, v_head_dim = 5, 3, 7, 4, 2, 6
    weight = torch.randn(heads, plain + v_head_dim, rank, dtype=torch.float64)
    kept = Latents(weight[:, :plain], weight[:, plain:])
    latents, rotations = (torch.randn(tokens, size, dtype=torch.float64) for size in (rank, rotated))
    q = torch.randn(tokens, heads, plain + rotated, dtype=torch.float64)
    expanded = torch.einsum("hdr,tr->thd", weight, latents)
    keys = torch.cat((expanded[..., :plain], rotations[:, None].expand(-1, heads, -1)), dim=-1)
    weights = torch.einsum("qhd,khd->hqk", q, keys).softmax(-1)
    expected = torch.einsum("hqk,khv->qhv", weights, expanded[..., plain:])
    key, value = kept(latents, rotations)
    weights = torch.einsum("qhd,kd->hqk", kept.queries(q), key).softmax(-1)
    found = kept.values(torch.einsum("hqk,kr->qhr", weights, value))
    assert torch.allclose(expected, found)
