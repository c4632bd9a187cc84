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
    """f(x W_up^T) W_down^T, or with swiglu (silu(x W_gate^T) * x W_up^T) W_down^T. Shapes: (B, T, D) in and out."""

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
