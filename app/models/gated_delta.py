"""Layers of the gated delta rule whose parts are named as in Qwen3.5, with nothing between the kernels.

transformers' forward computes the gates in eight small steps, and copies some inputs. In a decode of few requests each
of these takes as long as a kernel that does some work.
"""

from typing import Any

from torch import Tensor

from ..kernels import recurrent
from ..kernels.ops import gated_rms_norm
from ..layers.norm import GatedRMSNorm
from ..layers.recurrent import current_step
from .stand_ins import AtOnce, UnlikeError


class GatedDelta(AtOnce):
    """See `AtOnce`. It is tried, too: a module with these names that computes something else is not one."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """(1, tokens, width) of a step to (1, tokens, width of the output)."""
        module: Any = self.module
        step, (inputs, states) = current_step(), self.memory
        x, norm = hidden_states[0], module.norm
        if not isinstance(norm, GatedRMSNorm):
            raise UnlikeError("its parts are others")
        projections = module.in_proj_qkv, module.in_proj_z, module.in_proj_b, module.in_proj_a  # some are merged
        qkv, z, rates, decays = (projection(x) for projection in projections)
        convolution, (heads, v_dim) = module.conv1d, (z.shape[1] // norm.group, norm.group)
        qkv = recurrent.convolve(qkv, convolution.weight.squeeze(1), convolution.bias, True, inputs, *step)
        k_size = (qkv.shape[1] - z.shape[1]) // 2
        q, k, v = qkv.split([k_size, k_size, z.shape[1]], dim=-1)
        q, k = (x.unflatten(-1, (-1, states.shape[2])) for x in (q, k))  # (tokens, key heads, k_dim)
        v, z = (x.unflatten(-1, (heads, v_dim)) for x in (v, z))
        gates = module.A_log, module.dt_bias
        out = recurrent.delta_rule(q, k, v, decays, rates, True, states, step.entries, step.chunks, gates)
        out = gated_rms_norm(out, z, norm.weight, norm.eps, norm.group, norm.activation, norm.gates_first)
        projected: Tensor = module.out_proj(out.flatten(1))
        return projected[None]
