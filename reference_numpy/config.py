"""ModelConfig: the one description of a model that the spec, the twin, the checkpoints and the command line share."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal["decoder", "encoder", "encoder_decoder"]
Position = Literal["none", "sinusoidal", "learned", "rotary", "alibi"]
Norm = Literal["layer", "rms"]
NormPosition = Literal["pre", "post"]
Activation = Literal["gelu", "gelu_tanh", "relu", "relu_squared", "swiglu"]
Attention = Literal["softmax", "linear"]
CHOICES = {
    "kind": get_args(Kind),
    "position": get_args(Position),
    "norm": get_args(Norm),
    "norm_position": get_args(NormPosition),
    "activation": get_args(Activation),
    "attention": get_args(Attention),
}
MOST_LAYERS = 100_000  # beyond some millions the names of the parameters alone would fill the memory


@dataclass(frozen=True)
class ModelConfig:
    """Shape and choices of one transformer. Raises ValueError for a combination that has no meaning."""

    kind: Kind = "decoder"
    """decoder: causal language model; encoder: bidirectional; encoder_decoder: sequence to sequence."""
    vocabulary: int = 65
    """V, number of different tokens."""
    context: int = 64
    """Tokens in a training window, and at most while generating; only learned positions end here for the model itself."""
    width: int = 128
    """D, numbers per token in the residual stream, which every sub-layer reads and adds to."""
    layers: int = 4
    """L, blocks in each stack."""
    heads: int = 4
    """H, attention heads; must divide the width."""
    key_value_heads: int | None = None
    """G, heads that keep keys and values: None for H, 1 for multi-query (Shazeer 2019), between for grouped-query."""
    feed_forward: int | None = None
    """F, numbers per token inside the feed-forward layer; None for 4 D."""
    position: Position = "learned"
    """How order enters: added (sinusoidal, learned), rotated (rotary), as a penalty on distance (alibi), or not at all."""
    norm: Norm = "layer"
    """LayerNorm or RMSNorm."""
    norm_position: NormPosition = "pre"
    """pre: x + f(Norm(x)), with a final norm; post: Norm(x + f(x)), as in the 2017 paper, without one."""
    norm_epsilon: float = 1e-5
    """Added to the variance, inside the root."""
    activation: Activation = "gelu_tanh"
    """Nonlinearity of the feed-forward layer; swiglu has a gate, a third weight."""
    attention: Attention = "softmax"
    """softmax, quadratic in the length, or linear (feature map elu + 1)."""
    window: int | None = None
    """Self-attention sees positions at a distance below this many tokens (Beltagy et al. 2020); None for all."""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys, before the rotation (after Henry et al. 2020, who take the 2-norm)."""
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap); None for no cap."""
    token_shift: bool = False
    """Half of what self-attention and feed-forward read of a token is the token before's (after Peng et al. 2023)."""
    bias: bool = True
    """Biases in linear layers and in LayerNorm."""
    tied: bool = True
    """The output projection reuses the token embedding (Press & Wolf 2017)."""
    scale_embedding: bool = False
    """Multiply the token embedding by sqrt(D), as in section 3.4 of the 2017 paper."""
    dropout: float = 0.0
    """Probability of dropping a unit: after the embedding and after each sub-layer."""
    initial_deviation: float = 0.02
    """Standard deviation of initial weights; last maps of sub-layers / sqrt(their number); scaled embeddings 1/sqrt(D)."""
    zero_projections: bool = False
    """Start the last linear map of each sub-layer at zero, so that a pre-norm block starts as the identity."""

    def __post_init__(self) -> None:
        for name, words in CHOICES.items():
            require(getattr(self, name) in words, name, f"one of {', '.join(words)}", getattr(self, name))
        for name in ("vocabulary", "context", "width", "layers", "heads"):
            require(_counts(getattr(self, name)), name, "an integer of at least 1", getattr(self, name))
        require(self.layers <= MOST_LAYERS, "layers", f"at most {MOST_LAYERS}", self.layers)
        require(self.width % self.heads == 0, "heads", f"a divisor of the width {self.width}", self.heads)
        groups = self.key_value_heads
        require(
            groups is None or (_counts(groups) and self.heads % groups == 0),
            "key_value_heads",
            f"a divisor of the heads {self.heads}",
            groups,
        )
        for name in ("feed_forward", "window"):
            value = getattr(self, name)
            require(value is None or _counts(value), name, "an integer of at least 1", value)
        require(self.softcap is None or 0 < self.softcap < math.inf, "softcap", "a finite number above 0", self.softcap)
        require(0 <= self.dropout < 1, "dropout", "at least 0 and below 1", self.dropout)
        require(0 < self.norm_epsilon < math.inf, "norm_epsilon", "a finite number above 0", self.norm_epsilon)
        require(
            0 <= self.initial_deviation < math.inf,
            "initial_deviation",
            "a finite number of at least 0",
            self.initial_deviation,
        )
        if self.position == "rotary":
            got = f"{self.heads} of width {self.head_width}"
            require(self.head_width % 2 == 0, "heads", "an even head width for rotary positions", got)
        if self.attention == "linear":
            added = self.position not in ("rotary", "alibi")
            require(added, "position", "none, sinusoidal or learned for linear attention", self.position)
            require(self.window is None, "window", "none for linear attention", self.window)
            require(self.softcap is None, "softcap", "none for linear attention", self.softcap)

    @property
    def head_width(self) -> int:
        """K, numbers per token in one head."""
        return self.width // self.heads

    @property
    def key_heads(self) -> int:
        """G with its default filled in."""
        return self.heads if self.key_value_heads is None else self.key_value_heads

    @property
    def inner_width(self) -> int:
        """F with its default filled in."""
        return 4 * self.width if self.feed_forward is None else self.feed_forward


def _counts(value: Any) -> bool:
    """Whether there can be so many of something: an integer, Python's or NumPy's, from 1 on."""
    return hasattr(value, "__index__") and bool(value >= 1)


def require(holds: bool, name: str, expected: str, got: object) -> None:
    """Raises ValueError, naming the option, what was expected and what came, unless it holds."""
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got}")
