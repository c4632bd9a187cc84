"""Token shift: a part of what a sub-layer reads of a token is the token before's (Peng et al. 2023, "token shift")."""

from typing import NamedTuple

import numpy as np


class TokenShiftCache(NamedTuple):
    """Which tokens are real; None if all are. It is all that the backward pass needs: the shift has no parameters."""

    padding: np.ndarray | None


class LastToken:
    """What decoding keeps of the last token for the next one: its second half, (B, 1, D//2)."""

    def __init__(self) -> None:
        self.half: np.ndarray | None = None

    def select(self, rows: np.ndarray) -> None:
        """Go on with these rows of the batch."""
        self.half = None if self.half is None else self.half[rows]


def token_shift_forward(
    x: np.ndarray, padding: np.ndarray | None = None, past: LastToken | None = None
) -> tuple[np.ndarray, TokenShiftCache]:
    """y[t, i] = x[t, i] for the first half of the channels, y[t, i] = x[t-1, i] for the second; nothing is before the first.

    So a sub-layer sees pairs of neighbours, with no parameter more. The paper mixes both tokens in every channel, in shares
    that are learned; here they are 0 and 1. Padding passes nothing on. Shapes: x (B, T, D), padding (B, T) bool, True for a
    real token; y like x. `past` has the token before the first and takes the last one in.
    """
    half = x.shape[2] // 2
    own, passed = x[:, :, : x.shape[2] - half], x[:, :, x.shape[2] - half :]
    passed = _of_real(passed, padding)
    first = np.zeros_like(x, shape=(x.shape[0], 1, half)) if past is None or past.half is None else past.half
    passed = np.concatenate((first, passed), axis=1)  # (B, T+1, D/2)
    if past is not None:
        past.half = passed[:, -1:]
    return np.concatenate((own, passed[:, :-1]), axis=2), TokenShiftCache(padding)


def token_shift_backward(d_y: np.ndarray, cache: TokenShiftCache) -> np.ndarray:
    """dL/dx[t, i] = dL/dy[t, i] for the first half, dL/dx[t, i] = dL/dy[t+1, i] for the second: each goes back to where it
    came from; nobody read the second half of the last token, or of padding."""
    half = d_y.shape[2] // 2
    d_own, d_passed = d_y[:, :, : d_y.shape[2] - half], d_y[:, :, d_y.shape[2] - half :]
    d_last = np.zeros_like(d_y, shape=(d_y.shape[0], 1, half))
    d_passed = np.concatenate((d_passed, d_last), axis=1)[:, 1:]  # (B, T, D/2)
    return np.concatenate((d_own, _of_real(d_passed, cache.padding)), axis=2)


def _of_real(x: np.ndarray, padding: np.ndarray | None) -> np.ndarray:
    """x (B, T, ...) of the real tokens, 0 of the others."""
    return x if padding is None else np.where(padding[:, :, None], x, 0)
