"""Linear attention: the feature map elu + 1 instead of the softmax; see the spec for the derivation."""

import torch
from torch import Tensor

from torch_impl.mask import check_attention_shapes, only_seen

CHUNK = 64  # positions per tile: inside a tile products of pairs, between tiles the state


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output (B, H, T, K) and the state (B, H, K, K + 1) to continue from.

    Shapes: query (B, H, T, K), key and value (B, H, S, K), T = S if causal; mask over keys (B, 1, 1, S), state as returned.
    Raises ValueError as the spec does.
    """
    check_attention_shapes(query, key, value, mask)
    if causal and query.shape[2] != key.shape[2]:
        raise ValueError(f"key: expected as many as there are queries, {query.shape[2]}, got {key.shape[2]}")
    seen = None
    if mask is not None:
        mask = torch.atleast_2d(mask)
        if mask.shape[-2] != 1:
            raise ValueError(f"mask: expected one over keys, (B, H, 1, S), got {tuple(mask.shape)}")
        seen = mask.mT  # (B, H, S, 1)
    key, value = only_seen(key, seen), only_seen(value, seen)
    query_features, key_features = _features(query), only_seen(_features(key), seen)
    value_and_one = torch.cat((value, torch.ones_like(value[..., :1])), dim=-1)
    product = causal_product if causal else full_product
    sums, state = product(query_features, key_features, value_and_one, state)
    numerator, normalizer = sums[..., :-1], sums[..., -1:]
    return numerator / torch.where(normalizer == 0, 1, normalizer), state


def full_product(a: Tensor, b: Tensor, w: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """sum over all s of (a_t . b_s) w_s, and the state."""
    total = b.mT @ w
    if state is not None:
        total = state + total
    return a @ total, total


def causal_product(a: Tensor, b: Tensor, w: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """sum over s <= t of (a_t . b_s) w_s, tile by tile, and the state after the last tile."""
    if state is None:
        state = a.new_zeros(*a.shape[:2], a.shape[-1], w.shape[-1])
    tiles = [a[..., :0, :] @ state]
    for a_tile, b_tile, w_tile in zip(*(x.split(CHUNK, dim=2) for x in (a, b, w)), strict=True):
        pairs = (a_tile @ b_tile.mT).tril()
        tiles.append(a_tile @ state + pairs @ w_tile)
        state = state + b_tile.mT @ w_tile
    return torch.cat(tiles, dim=2), state


def _features(x: Tensor) -> Tensor:
    """elu(x) + 1 by its definition: torch's elu is near -1 far below 0, and the sum with 1 would lose the digits."""
    return torch.where(x > 0, x + 1, torch.exp(x.clamp(max=0)))
