"""Decoding: sampling, greedy search and beam search, with keys and values of earlier tokens kept or recomputed.

A `Decoder` gives the logits that follow a batch of token sequences; the searches ask it for nothing else, so they serve
both twins.
"""

import math
from typing import NamedTuple, Protocol

import numpy as np

from reference_numpy.block import BlockPast
from reference_numpy.config import ModelConfig
from reference_numpy.model import model_forward
from reference_numpy.parameters import Parameters


class Decoder(Protocol):
    """What a search needs of a model. The sequences of the batch always have one common length."""

    context: int | None
    """Tokens that the model may look at; None where its positions set no limit."""

    def append(self, tokens: np.ndarray) -> np.ndarray:
        """Add tokens (B, n), n at least 1, to the sequences; logits (B, V) for the token after the last."""

    def select(self, rows: np.ndarray) -> None:
        """Go on with these rows of the batch, (B',) integers, in this order; a row may be taken twice."""

    def restart(self) -> None:
        """Forget all tokens (an encoder-decoder keeps its source)."""


class CachedDecoder:
    """The spec as a Decoder: each call computes the new tokens only, with keys and values of the earlier ones at hand.

    With `cached=False` everything is computed again at every call; both give the same logits to rounding. `source` (B, S)
    and `source_padding` belong to an encoder-decoder. `extrapolate` lets positions that are computed (all
    but learned ones) run on beyond the context.
    """

    def __init__(
        self,
        parameters: Parameters,
        config: ModelConfig,
        source: np.ndarray | None = None,
        source_padding: np.ndarray | None = None,
        cached: bool = True,
        extrapolate: bool = False,
    ) -> None:
        self.context = decoding_context(config, extrapolate)
        self._parameters, self._config, self._cached = parameters, config, cached
        self._given = None if source is None else source.copy(), None if source_padding is None else source_padding.copy()
        self.restart()

    def restart(self) -> None:
        self._source, self._source_padding = self._given  # in the order before any select
        self._tokens: np.ndarray | None = None
        self._past = [BlockPast() for _ in range(self._config.layers)] if self._cached else None

    def append(self, tokens: np.ndarray) -> np.ndarray:
        if tokens.shape[1] == 0:
            raise ValueError("tokens: expected at least 1 to append, got 0")
        if not self._cached and self._tokens is not None:
            tokens = np.concatenate((self._tokens, tokens), axis=1)
        source = None if self._cached and self._tokens is not None else self._source
        logits, _ = model_forward(
            self._parameters, self._config, tokens, source=source, source_padding=self._source_padding, past=self._past
        )
        self._tokens = tokens
        return logits[:, -1]

    def select(self, rows: np.ndarray) -> None:
        if self._tokens is not None:
            self._tokens = self._tokens[rows]
        for past in self._past or []:
            past.select(rows)
        self._source = None if self._source is None else self._source[rows]
        self._source_padding = None if self._source_padding is None else self._source_padding[rows]


def decoding_context(config: ModelConfig, extrapolate: bool) -> int | None:
    """The context that decoding keeps to. Raises ValueError where learned positions cannot be extrapolated, and for an
    encoder, which predicts no next token."""
    if config.kind == "encoder":
        raise ValueError("kind: expected decoder or encoder_decoder to write text, got encoder")
    if extrapolate and config.position == "learned":
        raise ValueError("extrapolate: expected positions that are computed, got learned ones, which end with the context")
    return None if extrapolate else config.context


def generate(
    parameters: Parameters,
    config: ModelConfig,
    tokens: np.ndarray,
    count: int,
    generator: np.random.Generator,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    cached: bool = True,
    extrapolate: bool = False,
) -> np.ndarray:
    """Tokens (T,) or (B, T) and `count` sampled ones behind them: (T + count,) or (B, T + count)."""
    decoder = CachedDecoder(parameters, config, cached=cached, extrapolate=extrapolate)
    return sample(decoder, tokens, count, generator, temperature, top_k, top_p)


def sample(
    decoder: Decoder,
    tokens: np.ndarray,
    count: int,
    generator: np.random.Generator,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> np.ndarray:
    """Tokens (T,) or (B, T) and `count` sampled ones behind them.

    When the context is full, decoding starts again from the last half of it, so that a model never looks at more tokens
    than it was trained on; see `visible_from`. Raises ValueError for an empty prompt or a negative count.
    """
    batch = np.atleast_2d(tokens)
    if batch.shape[1] == 0:
        raise ValueError("tokens: expected at least 1 token to go on from, got 0")
    if count < 0:
        raise ValueError(f"count: expected at least 0 tokens, got {count}")
    first, stop = -1, -1  # the decoder has seen the tokens from first to stop - 1
    for _ in range(count):
        if first != (visible := visible_from(batch.shape[1], decoder.context)):
            decoder.restart()
            first = stop = visible
        logits = decoder.append(batch[:, stop:])
        stop = batch.shape[1]
        chosen = next_tokens(logits, generator, temperature, top_k, top_p)
        batch = np.concatenate((batch, chosen[:, None]), axis=1)
    return batch if tokens.ndim == 2 else batch[0]


def visible_from(length: int, context: int | None) -> int:
    """The first of `length` tokens that the model looks at: 0 while they fit the context, then in steps of half of it.

    Moving by one token at a time would change every position, and with it every key, at every step.
    """
    if context is None:
        return 0
    half = max(context // 2, 1)
    return max(0, math.ceil((length - context) / half) * half)


def next_token(
    logits: np.ndarray, generator: np.random.Generator, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> int:
    """One token for logits (V,); see next_tokens."""
    return int(next_tokens(logits[None], generator, temperature, top_k, top_p)[0])


def next_tokens(
    logits: np.ndarray, generator: np.random.Generator, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> np.ndarray:
    """Draw one token per row of logits (B, V): (B,) integers.

    softmax(logits / temperature), cut to the `top_k` likeliest (0: all) and then to the fewest likeliest tokens that
    together reach `top_p` (Holtzman et al. 2020, section 3.1). Temperature 0 takes the likeliest. One uniform number per row
    is drawn and looked up in the cumulative distribution, in float64, so that equal logits give equal tokens in both twins.
    Raises ValueError for a temperature below 0, a top_k below 0, a top_p outside (0, 1], or logits that are not finite.
    """
    logits = _finite(logits)
    for name, value, holds, expected in (
        ("temperature", temperature, 0 <= temperature < math.inf, "a finite number of at least 0"),
        ("top_k", top_k, top_k >= 0, "at least 0"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
    ):
        if not holds:
            raise ValueError(f"{name}: expected {expected}, got {value}")
    draws = generator.random(len(logits))
    if temperature == 0:
        return logits.argmax(axis=-1)
    scaled = logits.astype(np.float64)
    scaled = (scaled - scaled.max(axis=-1, keepdims=True)) / temperature
    order = np.argsort(-logits, axis=-1, kind="stable")  # likeliest first; scaling may round two of them to one
    p = np.exp(np.take_along_axis(scaled, order, axis=-1))
    if top_k > 0:
        p[:, top_k:] = 0
    p /= p.sum(axis=-1, keepdims=True)
    before = np.concatenate((np.zeros_like(p[:, :1]), np.cumsum(p, axis=-1)[:, :-1]), axis=-1)  # of all likelier tokens
    p[before >= top_p] = 0
    cumulative = np.cumsum(p, axis=-1)
    rank = (cumulative <= draws[:, None] * cumulative[:, -1:]).sum(axis=-1)
    return np.take_along_axis(order, rank[:, None], axis=-1)[:, 0]


class Hypothesis(NamedTuple):
    """A finished sequence without its start and end tokens, and its score: log probability over length penalty."""

    tokens: list[int]
    score: float


def greedy_search(decoder: Decoder, batch: int, start: int, end: int, maximum: int) -> list[list[int]]:
    """For each of `batch` rows the likeliest token at every step, until `end` or `maximum` tokens: lists without either.

    The model must have positions for all of them, here and in beam_search. Raises ValueError for logits that are not finite.
    """
    found: list[list[int]] = [[] for _ in range(batch)]
    open_rows = np.arange(batch)
    tokens = np.full((batch, 1), start)
    decoder.restart()
    for _ in range(maximum):
        chosen = _finite(decoder.append(tokens)).argmax(axis=-1)
        going = chosen != end
        for row, token in zip(open_rows[going], chosen[going], strict=True):
            found[row].append(int(token))
        if not going.any():
            break
        if not going.all():
            decoder.select(np.flatnonzero(going))
        open_rows, tokens = open_rows[going], chosen[going][:, None]
    return found


def beam_search(
    decoder: Decoder, batch: int, start: int, end: int, maximum: int, beams: int = 4, alpha: float = 0.6
) -> list[Hypothesis]:
    """The best finished sequence of each of `batch` rows.

    At every step each row keeps its `beams` best open prefixes, by the sum of log probabilities; of the 2 `beams` best
    continuations those that end go to the finished ones. Finished sequences compare by log p / ((5 + length) / 6)^alpha, the
    length counting the end token (Wu et al. 2016, equation 14; alpha 0.6 and 4 beams in Vaswani et al. 2017, section 6.1). A
    row is done when no open prefix can still win; what is open after `maximum` tokens counts as finished.
    Raises ValueError for fewer than 1 beam, for alpha below 0 or infinite, and for logits that are not finite.
    """
    if beams < 1:
        raise ValueError(f"beams: expected at least 1, got {beams}")
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha: expected a finite number of at least 0, got {alpha}")
    decoder.restart()
    decoder.select(np.repeat(np.arange(batch), beams))
    prefixes: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(batch)]
    scores = np.full((batch, beams), -np.inf)
    scores[:, 0] = 0.0  # the beams of a row start equal: only one may branch
    best = [Hypothesis([], -math.inf if maximum > 0 else 0.0) for _ in range(batch)]
    tokens = np.full((batch * beams, 1), start)
    open_rows = list(range(batch))
    for length in range(1, maximum + 1):
        log_p = _log_softmax(_finite(decoder.append(tokens)))
        vocabulary = log_p.shape[-1]
        totals = (scores[open_rows].reshape(-1, 1) + log_p).reshape(len(open_rows), beams * vocabulary)
        ranked = np.argsort(-totals, axis=-1, kind="stable")[:, : 2 * beams]
        parents, next_open, next_token_ids = [], [], []
        for index, row in enumerate(open_rows):
            kept: list[tuple[int, int, float]] = []
            for flat in ranked[index]:
                beam, token = divmod(int(flat), vocabulary)
                total = float(totals[index, flat])
                if token == end:
                    finished = Hypothesis(prefixes[row][beam], total / length_penalty(length, alpha))
                    best[row] = max(best[row], finished, key=lambda hypothesis: hypothesis.score)
                elif len(kept) < beams:
                    kept.append((beam, token, total))
            while len(kept) < beams:  # fewer continuations than beams: fill with one that can never win
                kept.append((0, kept[0][1] if kept else start, -math.inf))
            prefixes[row] = [[*prefixes[row][beam], token] for beam, token, _ in kept]
            scores[row] = [total for _, _, total in kept]
            if length == maximum:
                unfinished = Hypothesis(prefixes[row][0], float(scores[row, 0]) / length_penalty(length, alpha))
                best[row] = max(best[row], unfinished, key=lambda hypothesis: hypothesis.score)
            # log p only falls, and the penalty is largest at the longest length
            if scores[row, 0] / length_penalty(maximum, alpha) > best[row].score:
                next_open.append(row)
                parents += [index * beams + beam for beam, _, _ in kept]
                next_token_ids += [token for _, token, _ in kept]
        if not next_open:
            break
        decoder.select(np.array(parents))
        tokens, open_rows = np.array(next_token_ids)[:, None], next_open
    return best


def length_penalty(length: int, alpha: float) -> float:
    """((5 + length) / 6)^alpha: with alpha above 0 longer sequences are held to a lower log probability."""
    return ((5 + length) / 6) ** alpha


def _finite(logits: np.ndarray) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise ValueError("logits: expected finite numbers, got NaN or inf: the model has diverged")
    return logits


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
