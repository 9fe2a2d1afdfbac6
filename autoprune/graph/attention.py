"""Attention heads as channels: `torch.nn.MultiheadAttention`, written so that its heads follow its weights.

PyTorch's own forward computes the length of a head as ``embed_dim / num_heads``, so a module that lost heads
can't run through it. The one here computes the same and takes the number of heads from the weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with any number of heads of length ``head_dim``; made by `adopt` only."""

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
        """As `torch.nn.MultiheadAttention.forward`; E is ``embed_dim``, H the heads, D ``head_dim``.

        Args:
            query: [L, E], [L, N, E] or, with ``batch_first``, [N, L, E].
            key: [S, ...] likewise.
            value: [S, ...] likewise.
            key_padding_mask: [N, S], true or -inf at positions to leave out.
            need_weights: return the attention weights too.
            attn_mask: [L, S] or [N * H, L, S], true or -inf where attention is not allowed.
            average_attn_weights: return the mean of the heads' weights.
            is_causal: each position sees the ones up to itself; counts only without ``attn_mask``.

        Returns:
            Outputs in the layout of ``query``, and weights [N, L, S] or [N, H, L, S], or ``None``.
        """
        batched = query.dim() == 3
        itself = query is key and key is value
        dim = 0 if not batched or self.batch_first else 1
        query, key, value = (
            x.transpose(0, 1) if dim else x if batched else x.unsqueeze(0) for x in (query, key, value)
        )
        q, k, v = self._projected(query, key, value, itself)
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

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, itself: bool) -> list[Tensor]:
        """Queries, keys and values, [N, H, L or S, D]."""
        n, length = query.shape[:2]
        packed_weight = cast("Tensor | None", self.in_proj_weight)
        if itself and packed_weight is not None and self.bias_k is None and not self.add_zero_attn:
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
        found = None
        if mask is not None:
            mask = mask if mask.dim() == 2 else mask.view(q.shape[0], -1, *mask.shape[1:])
            found = self._additive(mask, q, k)
        if padding is not None:
            added = self._additive(padding[:, None, None], q, k)
            found = added if found is None else found + added
        return found

    def _additive(self, mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if mask.dtype == torch.bool:
            mask = torch.where(mask, float("-inf"), 0.0)
        # Keys that were added to those given are seen by all.
        return F.pad(mask.to(q.dtype), (0, k.shape[-2] - mask.shape[-1]))


def adopt(attention: nn.MultiheadAttention) -> None:
    """Makes a module whose weights were sliced run with the heads that it has, in place."""
    attention.__class__ = HeadAttention
    attention.num_heads = attention.out_proj.weight.shape[1] // attention.head_dim
    attention.embed_dim = attention.out_proj.weight.shape[0]
    # Tells torch's fused encoder layers, which divide embed_dim by num_heads, to keep off.
    attention._qkv_same_embed_dim = False


@contextmanager
def heads_visible(model: nn.Module) -> Iterator[None]:
    """Runs every `torch.nn.MultiheadAttention` of ``model`` as a `HeadAttention`, inside the block."""
    found = [module for module in model.modules() if type(module) is nn.MultiheadAttention]
    for module in found:
        module.__class__ = HeadAttention
    try:
        yield
    finally:
        for module in found:
            module.__class__ = nn.MultiheadAttention
