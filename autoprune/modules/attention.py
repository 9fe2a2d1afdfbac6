"""Attention heads as channels: `torch.nn.MultiheadAttention` with as many heads as its weights have.

PyTorch's own forward computes the length of a head as ``embed_dim / num_heads``, so a module that lost heads
can't run through it. The one here computes the same for any number of heads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


class HeadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with any number of heads of length ``head_dim``.

    Never constructed: `adapt_heads` and `heads_visible` change the class of existing modules.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `torch.nn.MultiheadAttention.forward`; E is ``embed_dim``, H the number of heads.

        Args:
            query: [L, E], [L, N, E] or, with ``batch_first``, [N, L, E].
            key: [S, ...] likewise.
            value: [S, ...] likewise.
            key_padding_mask: [N, S], true or -inf at positions to ignore.
            need_weights: return the attention weights too.
            attn_mask: [L, S] or [N * H, L, S], true or -inf where attention is not allowed.
            average_attn_weights: return the mean of the heads' weights.
            is_causal: each position attends to those up to itself; has an effect only without ``attn_mask``.

        Returns:
            Outputs in the layout of ``query``, and weights [N, L, S] or [N, H, L, S], or ``None``.
        """
        if not self.num_heads:
            return self._without_heads(query, key, need_weights, average_attn_weights)
        batched = query.dim() == 3
        self_attention = query is key and key is value
        dim = 0 if not batched or self.batch_first else 1
        query, key, value = (
            x.transpose(0, 1) if dim else x if batched else x.unsqueeze(0) for x in (query, key, value)
        )
        q, k, v = self._project(query, key, value, self_attention)
        mask = self._mask(q, k, key_padding_mask if batched or key_padding_mask is None
                          else key_padding_mask.unsqueeze(0), attn_mask)  # fmt: skip
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            scores = scores if mask is None else scores + mask
            weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
            heads = weights @ v
        else:
            dropout = self.dropout if self.training else 0.0
            causal = is_causal and mask is None
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        out = self.out_proj(heads.transpose(1, 2).flatten(-2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out.transpose(0, 1) if dim else out, weights

    def _without_heads(
        self, query: Tensor, key: Tensor, need_weights: bool, average_attn_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The outputs of no heads: what `out_proj` makes of no inputs."""
        out = self.out_proj(query.new_empty(*query.shape[:-1], 0))
        if not need_weights:
            return out, None
        batched = query.dim() == 3
        axis = 1 if batched and self.batch_first else 0
        keys = key.shape[axis] + (self.bias_k is not None) + self.add_zero_attn
        batch = (query.shape[1 - axis],) if batched else ()
        heads = () if average_attn_weights else (0,)
        return out, query.new_zeros(*batch, *heads, query.shape[axis], keys)

    def _project(self, query: Tensor, key: Tensor, value: Tensor, self_attention: bool) -> list[Tensor]:
        """Queries, keys and values, [N, H, L or S, head_dim]."""
        n, length = query.shape[:2]
        packed_weight = cast("Tensor | None", self.in_proj_weight)
        if self_attention and packed_weight is not None and self.bias_k is None and not self.add_zero_attn:
            packed = F.linear(query, packed_weight, self.in_proj_bias)
            return [x.transpose(1, 2) for x in packed.view(n, length, 3, -1, self.head_dim).unbind(2)]
        if packed_weight is not None:
            matrices = packed_weight.chunk(3)
        else:
            matrices = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), matrices, biases, strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(n, -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(n, -1, -1)], dim=1)
        if self.add_zero_attn:
            k, v = (torch.cat([x, torch.zeros_like(x[:, :1])], dim=1) for x in (k, v))
        return [x.view(n, x.shape[1], -1, self.head_dim).transpose(1, 2) for x in (q, k, v)]

    def _mask(self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """What is added to the scores [N, H, L, S], of a shape that broadcasts to them."""
        bias = None
        if mask is not None:
            mask = mask if mask.dim() == 2 else mask.view(q.shape[0], -1, *mask.shape[1:])
            bias = self._additive(mask, q, k)
        if padding is not None:
            padding_bias = self._additive(padding[:, None, None], q, k)
            bias = padding_bias if bias is None else bias + padding_bias
        return bias

    def _additive(self, mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if mask.dtype == torch.bool:
            mask = torch.where(mask, float("-inf"), 0.0)
        # Keys added to the given ones (bias_k, zeros) are visible to all queries.
        return F.pad(mask.to(q.dtype), (0, k.shape[-2] - mask.shape[-1]))


def adapt_heads(attention: nn.MultiheadAttention) -> None:
    """Makes a module whose weights were sliced run with its remaining heads, in place."""
    attention.__class__ = HeadAttention
    attention.num_heads = attention.out_proj.weight.shape[1] // attention.head_dim
    attention.embed_dim = attention.out_proj.weight.shape[0]
    # Keeps torch's fused encoder layers, which divide embed_dim by num_heads, from using the module.
    attention._qkv_same_embed_dim = False


@contextmanager
def heads_visible(model: nn.Module) -> Iterator[None]:
    """Runs every `torch.nn.MultiheadAttention` of ``model`` as a `HeadAttention`, inside the block."""
    attentions = [module for module in model.modules() if type(module) is nn.MultiheadAttention]
    for module in attentions:
        module.__class__ = HeadAttention
    try:
        yield
    finally:
        for module in attentions:
            module.__class__ = nn.MultiheadAttention


def flop_counter() -> FlopCounterMode:
    """Torch's own counter of FLOPs, the reference of the cost model; it counts two per multiply-add.

    Torch registers its formula of attention for GPU kernels only; here the CPU kernel has it too.
    """
    sdpa_flops: Callable[..., int] = sdpa_flop_count

    def attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flops(query, key, value)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: attention_flops})
