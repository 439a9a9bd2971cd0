"""Decodes on the CPU: recorded, and as they are where they cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.families import DECODER, write_checkpoint
from tests.models.test_oracle import make_engine, make_requests, run_crowd, tiny_settings, tokens_of

pytestmark = pytest.mark.usefixtures("compiled_kernels", "two_threads")


class Looking(torch.nn.Module):
    """Counts the forward passes of a model, and may look at what it computes."""

    def __init__(self, model: Any, looks: bool) -> None:
        super().__init__()
        self.compute_logits = model.compute_logits
        self.model, self.looks, self.passes = model, looks, 0

    def forward(self, *args: Any) -> Tensor:
        self.passes += 1
        hidden: Tensor = self.model(*args)
        return hidden + float(hidden.sum().item() * 0) if self.looks else hidden


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("Llama", "float32"),
        ("Llama", "bfloat16"),
        ("Gemma3Text", "float32"),
        ("Qwen3", "float32"),
        ("Olmoe", "float32"),
        ("GptOss", "float32"),
    ],
)
def test_recorded_decodes_say_what_decodes_that_cannot_be_recorded_say(family: str, dtype: str, tmp_path: Path) -> None:
    write_checkpoint(family, DECODER[family], tmp_path)
    requests = make_requests(10, temperature=0.7)
    texts, passes = [], []
    for looks in (False, True):
        core = make_engine(tmp_path, tiny_settings(model_impl="decoder").model_copy(update={"dtype": dtype}))
        core.worker.model = Looking(core.worker.model, looks)
        core.worker.execution._tapes = type(core.worker.execution)(1, 1, 1)._tapes  # without the warm-up's
        outputs, _ = run_crowd(core, requests)
        texts.append({name: tokens_of(news) for name, news in outputs.items()})
        passes.append(core.worker.model.passes)
    assert texts[0] == texts[1]
    assert passes[0] < passes[1] / 2
