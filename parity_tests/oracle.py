"""A third transformer: every number by its definition, one position, one head, one channel group at a time.

The twins could share a mistake, and parity would not notice. This one is written from the papers and from what ModelConfig
promises, shares no code with the twins, knows no cache, no batch and no gradient, and is as slow as it looks.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from reference_numpy.config import ModelConfig

Parameters = dict[str, np.ndarray]
Drop = Callable[[np.ndarray], np.ndarray]
May = Callable[[int, int], bool]  # may the query at position t attend to the key at position s?

ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "relu_squared": lambda x: max(x, 0.0) ** 2,
    "swiglu": lambda x: x / (1 + math.exp(-x)),
}


def logits(
    parameters: Parameters,
    config: ModelConfig,
    tokens: np.ndarray,
    padding: np.ndarray | None = None,
    source: np.ndarray | None = None,
    source_padding: np.ndarray | None = None,
    masks: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """(B, T, V); the arguments are those of model_forward. In training `masks` says which units stay: (B, T, D) after each
    embedding and after each sub-layer, in order."""
    output = []
    for b in range(len(tokens)):
        drop = dropout(config, None if masks is None else [mask[b] for mask in masks])
        real = np.ones(tokens.shape[1], bool) if padding is None else padding[b]
        memory, source_real = None, np.ones(0, bool)
        if source is not None:
            source_real = np.ones(source.shape[1], bool) if source_padding is None else source_padding[b]
            memory = stack(parameters, config, "encoder.", source[b], source_real, False, None, source_real, drop)
        prefix = "" if source is None else "decoder."
        causal = config.kind != "encoder"
        hidden = stack(parameters, config, prefix, tokens[b], real, causal, memory, source_real, drop)
        head = parameters["token_embedding.weight" if config.tied else "head.weight"]
        output.append([head @ x for x in hidden])
    return np.array(output)


def stack(
    parameters: Parameters,
    config: ModelConfig,
    prefix: str,
    tokens: np.ndarray,
    real: np.ndarray,
    causal: bool,
    memory: np.ndarray | None,
    source_real: np.ndarray,
    drop: Drop,
) -> np.ndarray:
    """(T, D): embedding, blocks, and the final norm of pre-norm, for one sequence."""

    def may(t: int, s: int) -> bool:
        near = config.window is None or abs(t - s) < config.window
        return bool(real[s]) and near and (s <= t or not causal)

    x = drop(np.array([embedding(parameters, config, int(token), t) for t, token in enumerate(tokens)]))
    for layer in range(config.layers):
        own = {name.removeprefix(f"{prefix}blocks.{layer}."): value for name, value in parameters.items()}
        x = block(x, own, config, real, may, memory, source_real, drop)
    if config.norm_position == "pre":
        x = np.array([norm(row, parameters, f"{prefix}final_norm", config) for row in x])
    return x


def block(
    x: np.ndarray,
    own: Parameters,
    config: ModelConfig,
    real: np.ndarray,
    may: May,
    memory: np.ndarray | None,
    source_real: np.ndarray,
    drop: Drop,
) -> np.ndarray:
    """(T, D): self-attention, cross-attention if there is a memory, feed-forward; each with norm and residual."""

    def self_attention(h: np.ndarray) -> np.ndarray:
        h = shifted(h, real, config)
        return attention(h, h, own, "attention", config, may)

    def cross_attention(h: np.ndarray) -> np.ndarray:
        assert memory is not None
        return attention(h, memory, own, "cross_attention", config, lambda t, s: bool(source_real[s]))

    x = residual(x, self_attention, own, "attention_norm", config, drop)
    if memory is not None:
        x = residual(x, cross_attention, own, "cross_attention_norm", config, drop)
    return residual(x, lambda h: feed_forward(shifted(h, real, config), own, config), own, "feed_forward_norm", config, drop)


def shifted(h: np.ndarray, real: np.ndarray, config: ModelConfig) -> np.ndarray:
    """(T, D): with token_shift the last D//2 channels of each token are those of the token before, if that is a real one."""
    if not config.token_shift:
        return h
    first = [c for c in range(config.width) if c < config.width - config.width // 2]
    before = [h[t - 1] if t > 0 and real[t - 1] else np.zeros(config.width) for t in range(len(h))]
    return np.array([[h[t][c] if c in first else before[t][c] for c in range(config.width)] for t in range(len(h))])


def dropout(config: ModelConfig, masks: Sequence[np.ndarray] | None) -> Drop:
    """What to do with the rows (T, D) behind each sub-layer: of what stays 1 / (1 - rate), of the rest nothing."""
    if masks is None:
        return lambda rows: rows
    following = iter(masks)

    def drop(rows: np.ndarray) -> np.ndarray:
        stays = next(following)
        assert stays.shape == rows.shape
        return np.where(stays, rows / (1 - config.dropout), 0.0)

    return drop


def embedding(parameters: Parameters, config: ModelConfig, token: int, t: int) -> np.ndarray:
    """(D,): the token's row, scaled if the config says so, plus the position's."""
    x = parameters["token_embedding.weight"][token] * (math.sqrt(config.width) if config.scale_embedding else 1)
    if config.position == "learned":
        x = x + parameters["position_embedding.weight"][t]
    if config.position == "sinusoidal":
        pairs = [t / 10000 ** (2 * (i // 2) / config.width) for i in range(config.width)]
        x = x + np.array([math.cos(angle) if i % 2 else math.sin(angle) for i, angle in enumerate(pairs)])
    return x


def residual(
    x: np.ndarray, sublayer: Callable[[np.ndarray], np.ndarray], own: Parameters, name: str, config: ModelConfig, drop: Drop
) -> np.ndarray:
    """x + f(Norm(x)) or Norm(x + f(x)), for the rows of x (T, D)."""
    if config.norm_position == "pre":
        return x + drop(sublayer(np.array([norm(row, own, name, config) for row in x])))
    return np.array([norm(row, own, name, config) for row in x + drop(sublayer(x))])


def norm(x: np.ndarray, own: Parameters, name: str, config: ModelConfig) -> np.ndarray:
    """(D,): LayerNorm or RMSNorm of one row."""
    if config.norm == "rms":
        return rms_norm(x, own[f"{name}.weight"], config)
    deviation = math.sqrt(np.var(x) + config.norm_epsilon)  # NumPy's variance is the biased one
    return (x - np.mean(x)) / deviation * own[f"{name}.weight"] + own.get(f"{name}.bias", 0.0)


def rms_norm(x: np.ndarray, weight: np.ndarray, config: ModelConfig) -> np.ndarray:
    """x / its root mean square, epsilon inside, times the gain."""
    return x / math.sqrt(sum(v * v for v in x) / len(x) + config.norm_epsilon) * weight


def linear(x: np.ndarray, own: Parameters, name: str) -> np.ndarray:
    """W x + b for one row."""
    return own[f"{name}.weight"] @ x + own.get(f"{name}.bias", 0.0)


def attention(x: np.ndarray, memory: np.ndarray, own: Parameters, name: str, config: ModelConfig, may: May) -> np.ndarray:
    """(T, D): for every query the mean of the values that it may attend to, weighted head by head; then the output map."""
    cross, K = name == "cross_attention", config.width // config.heads
    users = config.heads // (config.key_value_heads or config.heads)  # neighbouring heads that share keys and values

    def part(row: np.ndarray, role: str, index: int, position: int) -> np.ndarray:
        vector = linear(row, own, f"{name}.{role}")[index * K : (index + 1) * K]
        if config.qk_norm and role != "value":
            vector = rms_norm(vector, own[f"{name}.{role}_norm.weight"], config)
        return turned(vector, position) if config.position == "rotary" and not cross and role != "value" else vector

    rows = []
    for t, row in enumerate(x):
        heads = []
        for h in range(config.heads):
            query, allowed = part(row, "query", h, t), [s for s in range(len(memory)) if may(t, s)]
            weights = [weight(query, part(memory[s], "key", h // users, s), h, t, s, cross, config) for s in allowed]
            values = [part(memory[s], "value", h // users, s) for s in allowed]
            total = sum(w * v for w, v in zip(weights, values, strict=True))
            heads.append(total / sum(weights) if allowed else np.zeros(K))
        rows.append(linear(np.concatenate(heads), own, f"{name}.output"))
    return np.array(rows)


def weight(query: np.ndarray, key: np.ndarray, h: int, t: int, s: int, cross: bool, config: ModelConfig) -> float:
    """How much head h at t takes from s, before the weights are divided by their sum."""
    if config.attention == "linear":
        return float(sum(elu_plus_one(q) * elu_plus_one(k) for q, k in zip(query, key, strict=True)))
    score = sum(q * k for q, k in zip(query, key, strict=True)) / math.sqrt(len(query))
    if config.softcap is not None:
        score = config.softcap * math.tanh(score / config.softcap)
    if config.position == "alibi" and not cross:
        score -= slopes(config.heads)[h] * abs(t - s)
    return math.exp(score)


def slopes(heads: int) -> list[float]:
    """ALiBi's: 2^(-8/H), 2^(-16/H) ... for a power of two; else of the power below, then every other of the one above."""
    if heads & (heads - 1) == 0:
        return [2.0 ** (-8 * (h + 1) / heads) for h in range(heads)]
    below = 2 ** math.floor(math.log2(heads))
    return slopes(below) + slopes(2 * below)[0::2][: heads - below]


def elu_plus_one(x: float) -> float:
    return x + 1 if x > 0 else math.exp(x)


def turned(vector: np.ndarray, position: int) -> np.ndarray:
    """Rotary positions as what they are: channels i and i + K/2 form a complex number, multiplied by exp(i t theta)."""
    half = len(vector) // 2
    theta = np.array([10000 ** (-2 * i / len(vector)) for i in range(half)])
    z = (vector[:half] + 1j * vector[half:]) * np.exp(1j * position * theta)
    return np.concatenate((z.real, z.imag))


def feed_forward(x: np.ndarray, own: Parameters, config: ModelConfig) -> np.ndarray:
    """(T, D): down(f(up x)), or down(f(gate x) * up x) with swiglu, row by row."""
    activate, rows = ACTIVATIONS[config.activation], []
    for row in x:
        up = linear(row, own, "feed_forward.up")
        if config.activation == "swiglu":
            inner = up * np.array([activate(v) for v in linear(row, own, "feed_forward.gate")])
        else:
            inner = np.array([activate(v) for v in up])
        rows.append(linear(inner, own, "feed_forward.down"))
    return np.array(rows)
