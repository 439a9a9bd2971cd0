"""A draft head: it guesses what follows the served model's last hidden state, several tokens deep.

From a state of the served model, and the token that was drawn behind it, it makes a state of its own; from that and the
token that it draws, the next one, and so on. So it keeps nothing between steps, and needs no attention. See "EAGLE" (Li
et al., 2024) and "Hydra" (Ankner et al., 2024). It knows a shortlist of tokens, those that are frequent in what it was
made for, because a product with the whole vocabulary would take the longest (Zhao et al., "FR-Spec", 2025).
"""

import torch
from torch import Tensor, nn

from ..checkpoint.draft_head import DraftHeadConfig, read_draft_head
from ..checkpoint.folder import ModelFolder
from ..errors import ModelError
from ..kernels.ops import gated, take_rows
from ..layers.linear import Head, Linear, attach
from ..layers.methods import in_eight_bits
from ..layers.norm import RMSNorm
from .loader import default_dtype
from .weights import load_weights


class DraftHead(nn.Module):
    """Tokens are numbers of the shortlist here, and `num_tokens` is any other token."""

    def __init__(self, config: DraftHeadConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.token_ids = nn.Parameter(torch.empty(config.num_tokens, dtype=torch.int64), requires_grad=False)
        """(num_tokens,): the shortlist."""
        self.embed_tokens = nn.Embedding(config.num_tokens + 1, size)
        self.state_proj = Linear(size, size, bias=False)
        self.mlp_norm = RMSNorm(size, config.norm_eps)
        self.gate_up_proj = Linear(size, 2 * config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, size, bias=False)
        self.norm = RMSNorm(size, config.norm_eps)
        self.lm_head = Head(size, config.num_tokens, None)

    def forward(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The states behind these tokens (n,), which were drawn behind the states (n, hidden_size) before."""
        x = take_rows(self.embed_tokens.weight, tokens, states.dtype)
        gate_up = self.gate_up_proj(self.mlp_norm(self.state_proj(states), x))  # norms add what they read to x
        out: Tensor = self.norm(self.down_proj(gated(gate_up, "silu")), x)
        return out

    def compute_logits(self, states: Tensor) -> Tensor:
        """Logits (n, num_tokens) in float32 of what follows states (n, hidden_size)."""
        logits: Tensor = self.lm_head(states)
        return logits


def load_draft_head(folder: ModelFolder, dtype: torch.dtype, device: torch.device) -> DraftHead:
    """Load the draft head in a folder. Raises ModelError for what cannot be loaded.

    Where there is a kernel for it, weights are rounded to 8 bits: that changes no text, and hardly any guess.
    """
    config = read_draft_head(folder)
    with torch.device(device), default_dtype(dtype):
        head = DraftHead(config)
        attach(head, in_eight_bits(device, dtype))
    load_weights(head, folder)
    if not 0 <= int(head.token_ids.min()) <= int(head.token_ids.max()) < config.vocab_size:
        raise ModelError(f"{folder.path}: token_ids are not all from 0 to {config.vocab_size - 1}")
    return head.eval().requires_grad_(False)
