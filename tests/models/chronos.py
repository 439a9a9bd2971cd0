"""Chronos: a tiny random checkpoint, and its published algorithm, run by transformers' T5."""

from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from tests.models.encoder_decoders import write_encoder_decoder

CHRONOS = {
    "tokenizer_class": "MeanScaleUniformBins",
    "tokenizer_kwargs": {"low_limit": -6.0, "high_limit": 6.0},
    "context_length": 60,
    "prediction_length": 50,
    "n_tokens": 64,
    "n_special_tokens": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "use_eos_token": True,
    "model_type": "seq2seq",
    "num_samples": 20,
    "temperature": 1.3,
    "top_k": 12,
    "top_p": 1.0,
}
_IDS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}


def write_chronos(folder: Path) -> PreTrainedModel:
    """Returns transformers' model in float32."""
    return write_encoder_decoder("T5", folder, {"vocab_size": 64, "chronos_config": CHRONOS, **_IDS})


class Published:
    """amazon-science/chronos-forecasting (chronos.py), in short."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.centers = torch.linspace(-6.0, 6.0, 61)
        middle = (self.centers[1:] + self.centers[:-1]) / 2
        self.boundaries = torch.cat([torch.tensor([-1e20]), middle, torch.tensor([1e20])])

    def read(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens and mask (1, tokens), and the scale, of a context (values,)."""
        context = context[-60:]
        is_there = ~context.isnan()
        scale = context.abs().nansum() / is_there.sum()
        scale = scale if scale > 0 else torch.tensor(1.0)
        ids = torch.bucketize(context / scale, self.boundaries, right=True) + 2
        ids.clamp_(0, 63)
        ids[~is_there] = 0
        ids, is_there = torch.cat([ids, torch.tensor([1])]), torch.cat([is_there, torch.tensor([True])])
        return ids[None], is_there[None], scale

    def paths(self, series: list[float | None], horizon: int) -> torch.Tensor:
        """(1, horizon): the most probable path."""
        context = torch.tensor([np.nan if number is None else number for number in series])
        done: list[torch.Tensor] = []
        while (left := horizon - sum(part.shape[1] for part in done)) > 0:
            ids, mask, scale = self.read(context)
            count = min(left, 50)
            config = GenerationConfig(
                min_new_tokens=count, max_new_tokens=count, do_sample=True, top_k=1, use_cache=False, **_IDS
            )
            tokens = self.model.generate(ids, attention_mask=mask.long(), generation_config=config)[:, 1:]
            done.append(self.centers[(tokens - 3).clamp(0, 60)] * scale)
            context = torch.cat([context, done[-1].median(dim=0).values])
        return torch.cat(done, dim=1)

    @torch.inference_mode()
    def first(self, series: list[float | None]) -> tuple[np.ndarray, np.ndarray]:
        """The values (12,) that a path may begin with, ascending, and their probabilities."""
        ids, mask, scale = self.read(torch.tensor([np.nan if number is None else number for number in series]))
        start = torch.tensor([[0]])
        logits = self.model(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=start).logits[0, 0]
        logits[1] = -torch.inf
        largest, tokens = (logits / 1.3).topk(12)
        order = tokens.argsort()
        values = self.centers[(tokens[order] - 3).clamp(0, 60)] * scale
        return values.numpy(), largest.softmax(-1)[order].numpy()
