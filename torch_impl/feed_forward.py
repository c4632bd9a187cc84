"""The feed-forward layer: the same two (or three) linear maps at every position."""

from torch import Tensor, nn

from reference_numpy.config import ModelConfig
from torch_impl import activation
from torch_impl.linear import Linear

ACTIVATIONS = {
    "gelu": activation.gelu,
    "gelu_tanh": activation.gelu_tanh,
    "relu": activation.relu,
    "relu_squared": activation.relu_squared,
    "swiglu": activation.silu,
}


class FeedForward(nn.Module):
    """W_down f(W_up x), or with swiglu W_down (silu(W_gate x) * W_up x). Shapes: (B, T, D) in and out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[config.activation]
        self.gate = Linear(config.width, config.inner_width, config.bias) if config.activation == "swiglu" else None
        self.up = Linear(config.width, config.inner_width, config.bias)
        self.down = Linear(config.inner_width, config.width, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activate(self.up(x)))
        return self.down(self.activate(self.gate(x)) * self.up(x))
