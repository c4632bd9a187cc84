"""Attention by torch's fused kernels, which never form the (T, S) weights where the device has such a kernel."""

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_impl.mask import allowed_pairs, check_attention_shapes, only_seen
from torch_impl.position import alibi_bias


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """The same function as scaled_dot_product_attention without a soft cap, through F.scaled_dot_product_attention.

    Shapes: query (B, H, T, K), key and value (B, H, S, K), mask bool, broadcastable to (B, H, T, S), slopes (H,); output
    (B, H, T, K). torch aligns its own causal mask at the start, ours at the end: they agree where T = S. Rows that may
    attend to nothing are given every key and then set to 0, so that no kernel meets an empty softmax.
    """
    check_attention_shapes(query, key, value, mask)
    T, S = query.shape[2], key.shape[2]
    causal = causal and T > 1  # one query is the last: it sees every key
    if mask is None and window is None and slopes is None and (not causal or T == S):
        return _fused(query, key, value, None, causal)
    allowed = allowed_pairs(T, S, mask, causal, window, query.device)
    filled = None
    if allowed is not None:
        seen = allowed.any(dim=-2)[..., None]  # (B, H, S, 1): a key that nobody sees is read as 0
        key, value = only_seen(key, seen), only_seen(value, seen)
        filled = allowed.any(dim=-1, keepdim=True)  # (B, H, T, 1)
        allowed = allowed | ~filled
    bias = allowed
    if slopes is not None:
        bias = alibi_bias(slopes, T, S)
        if allowed is not None:
            bias = torch.where(allowed, bias, -torch.inf)
    if bias is not None:
        bias = bias[(None,) * (4 - bias.ndim)]  # four axes, not yet expanded: torch does so where a kernel needs it
    output = _fused(query, key, value, bias, False)
    return output if filled is None else torch.where(filled, output, 0)


def _fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
    """torch's function; on a CPU never in bfloat16, for which its kernels there take up to ten times as long."""
    if query.device.type == "cpu" and (query.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")):
        if bias is not None and bias.dtype != torch.bool:
            bias = bias.float()
        with torch.autocast("cpu", enabled=False):
            return _fused(query.float(), key.float(), value.float(), bias, causal).to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=causal)
