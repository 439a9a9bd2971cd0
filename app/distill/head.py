"""A draft head that learns; see `app.models.draft_head` for what it is.

Its guesses count as long as all before them are right. So it learns from the teacher's own text, several tokens deep,
and never sees wrong ones.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..checkpoint.copy_files import copy_beside_weights
from ..checkpoint.draft_head import DraftHeadConfig
from ..checkpoint.folder import ModelFolder
from .acceptance import MOST_DRAFTS, Runs, draw
from .answers import Answer
from .loss import divergence, restrict
from .states import States

_MOST_TOKENS = 4096
"""Of the shortlist."""
_DEPTH = 3
"""Drafts behind each token that are learnt. Conditions hardly change beyond."""
_WIDTH = 2.5
"""The inner size of the layer, in hidden sizes."""
_EPS = 1e-5


class Head(nn.Module):
    """Computes what `app.models.draft_head.DraftHead` does, with states and embeddings of size 1."""

    known: Tensor

    def __init__(self, embeddings: Tensor, output: Tensor, inner: int) -> None:
        """embeddings and output (num_tokens, hidden_size): the teacher's, of the tokens of the shortlist."""
        super().__init__()
        size = embeddings.shape[1]
        others = torch.zeros(1, size)
        self.register_buffer("known", torch.cat((embeddings / embeddings.std(), others)), persistent=False)
        self.embed_proj = nn.Linear(size, size, bias=False)
        self.state_proj = nn.Linear(size, size, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(size))
        self.gate_up_proj = nn.Linear(size, 2 * inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)
        self.norm = nn.Parameter(torch.ones(size))
        self.lm_head = nn.Linear(size, len(output), bias=False)
        nn.init.zeros_(self.down_proj.weight)
        with torch.no_grad():
            self.lm_head.weight.copy_(output)

    def forward(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The next states (n, hidden_size), and logits (n, num_tokens), for states and numbers of tokens (n,)."""
        x = self.state_proj(states) + self.embed_proj(self.known[tokens])
        gate, up = self.gate_up_proj(_norm(x, self.mlp_norm)).chunk(2, dim=-1)
        states = _norm(x + self.down_proj(F.silu(gate) * up), self.norm)
        return states, self.lm_head(states).float()

    @torch.no_grad()
    def tensors(self, scale: float) -> dict[str, Tensor]:
        """The weights of the `DraftHead` that does the same with states of a root mean square of `scale`."""
        return {
            "embed_tokens.weight": self.embed_proj(self.known),
            "state_proj.weight": self.state_proj.weight / scale,
            "mlp_norm.weight": self.mlp_norm,
            "gate_up_proj.weight": self.gate_up_proj.weight,
            "down_proj.weight": self.down_proj.weight,
            "norm.weight": self.norm * scale,
            "lm_head.weight": self.lm_head.weight / scale,
        }


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x.float(), weight.shape, weight, _EPS)


@dataclass(frozen=True)
class _Text:
    """Answers one behind the other: n tokens in all."""

    states: Tensor
    """(n, hidden_size): behind which each token was drawn."""
    tokens: Tensor
    """(n,): numbers in the shortlist."""
    ends: Tensor
    """(n,): where each token's answer ends."""
    top: Tensor
    """(n, top): this and the next ones are the teacher's distribution, as far as the shortlist goes."""
    top_logprobs: Tensor
    rest: Tensor


class HeadLearner:
    """See `Learner`."""

    def __init__(
        self, head: Head, shortlist: Tensor, vocab_size: int, states: States, scale: float, fast: bool
    ) -> None:
        """shortlist (num_tokens,): token ids. `scale`: the size of states. `fast`: products in bfloat16."""
        self.module = head
        self._shortlist = shortlist
        self._states, self._scale, self._fast = states, scale, fast
        self._device = shortlist.device
        self._numbers = torch.full((vocab_size,), len(shortlist), device=self._device)
        self._numbers[shortlist] = torch.arange(len(shortlist), device=self._device)

    @property
    def sizes(self) -> dict[str, Any]:
        """See `Learner`."""
        learning = sum(parameter.numel() for parameter in self.module.parameters())
        return {"tokens": len(self._shortlist), "parameters": learning}

    def divergence(self, answers: Sequence[Answer]) -> Tensor:
        """See `Learner`."""
        text = self._text(answers)
        at, losses = torch.arange(len(text.tokens), device=self._device), []
        states = text.states
        for depth in range(_DEPTH):
            keep = at + depth + 1 < text.ends[at]
            at, states = at[keep], states[keep]
            states, logits = self._next(states, text.tokens[at + depth])
            to = at + depth + 1
            losses.append(divergence(logits, text.top[to], text.top_logprobs[to], text.rest[to]))
        return torch.cat(losses)

    def judge(self, answers: Sequence[Answer], other_luck: int = 0) -> tuple[Tensor, list[Runs]]:
        """See `Learner`. The first token of an answer comes with its prompt, so there is no draft of it."""
        text, counts = self._text(answers), [len(answer.tokens) for answer in answers]
        each = [answer for answer in answers for _ in answer.tokens]
        numbers = np.concatenate([np.arange(count) for count in counts])
        ids = np.concatenate([answer.tokens for answer in answers])
        ends, runs = text.ends.cpu().numpy(), np.zeros(len(ids), dtype=np.int64)
        at, states = np.arange(len(ids)), text.states
        keep = at + 1 < ends
        for depth in range(MOST_DRAFTS):
            at, states = at[keep], states[torch.from_numpy(keep).to(self._device)]
            to = at + depth + 1
            states, logits = self._next(states, text.tokens[torch.from_numpy(to - 1).to(self._device)])
            drawn = draw(logits, [each[place] for place in to], numbers[to], self._shortlist.cpu().numpy(), other_luck)
            right = drawn == ids[to]
            runs[at[right] + 1] += 1
            keep = right & (to + 1 < ends[at])
        return self.divergence(answers), [part.tolist() for part in np.split(runs, np.cumsum(counts)[:-1])]

    def own_answers(self, answers: Sequence[Answer], seed: int) -> None:
        """See `Learner`."""

    def more_figures(self, held_out: Sequence[Answer], batch_tokens: int) -> dict[str, Any]:  # noqa: ARG002
        """See `Learner`."""
        return {}

    def save(self, teacher: ModelFolder, out: Path) -> None:
        """See `Learner`."""
        size = self.module.norm.shape[0]
        inner = self.module.down_proj.weight.shape[1]
        config = DraftHeadConfig(size, len(self._numbers), len(self._shortlist), inner, _EPS)
        (out / "config.json").write_text(json.dumps(config.to_json(), indent=1) + "\n")
        tensors = {name: part.to(torch.bfloat16) for name, part in self.module.tensors(self._scale).items()}
        save_file({"token_ids": self._shortlist} | tensors, out / "model.safetensors")
        copy_beside_weights(teacher.path, out)

    def _next(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._fast):
            found: tuple[Tensor, Tensor] = self.module(states, tokens)
        return found

    def _text(self, answers: Sequence[Answer]) -> _Text:
        counts = torch.tensor([len(answer.tokens) for answer in answers])

        def tensor(name: str) -> Tensor:
            return torch.tensor([each for answer in answers for each in getattr(answer, name)], device=self._device)

        states = torch.cat([self._states[answer.question.seed] for answer in answers]).to(self._device)
        top = restrict(self._numbers[tensor("top_ids")], tensor("top_logprobs"), tensor("rest"), len(self._shortlist))
        ends = counts.cumsum(0).repeat_interleave(counts).to(self._device)
        return _Text(states.float() / self._scale, self._numbers[tensor("tokens")], ends, *top)


def make_head(
    teacher: PreTrainedModel, answers: Sequence[Answer], states: States, fast: bool, seed: int
) -> HeadLearner:
    """A head that has learnt nothing, on the teacher's device.

    `answers`: those that it is to learn from, whose most probable tokens are its shortlist.
    """
    embeddings: Tensor = teacher.get_input_embeddings().weight.detach()  # type: ignore[assignment]
    output: Tensor = teacher.get_output_embeddings().weight.detach()  # type: ignore[assignment, union-attr]
    mass = torch.zeros(len(output), dtype=torch.float64)
    for answer in answers:
        mass.index_add_(
            0, torch.tensor(answer.top_ids).flatten(), torch.tensor(answer.top_logprobs).flatten().exp().double()
        )
    shortlist = mass.topk(min(_MOST_TOKENS, int((mass > 0).sum()))).indices.sort().values.to(output.device)
    squares = [float(states[answer.question.seed].float().pow(2).mean()) for answer in answers]
    scale = math.sqrt(sum(squares) / len(squares))
    inner = int(_WIDTH * output.shape[1]) // 32 * 32
    with torch.random.fork_rng(), torch.device(output.device):
        torch.manual_seed(seed)
        head = Head(embeddings[shortlist].float(), scale * output[shortlist].float(), inner)
    return HeadLearner(head, shortlist, len(output), states, scale, fast)
