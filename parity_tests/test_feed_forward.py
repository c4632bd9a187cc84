"""Feed-forward layer: spec, twin and complex step, with every activation."""

import numpy as np
import torch
from hypothesis import given

from parity_tests.compare import check_operation
from parity_tests.strategies import configs, is_smooth, random_parameters, seeds, sizes
from reference_numpy.feed_forward import feed_forward_backward, feed_forward_forward
from reference_numpy.parameters import parameter_shapes, scope
from torch_impl.feed_forward import FeedForward


@given(configs(kind="decoder"), sizes(0, 3), sizes(0, 5), seeds)
def test_parity(config, B, T, seed):
    parameters = random_parameters(scope(parameter_shapes(config), "blocks.0.feed_forward"), seed)
    x = np.random.default_rng(seed).standard_normal((B, T, config.width))
    module = FeedForward(config)

    def forward(x, *values):
        return feed_forward_forward(x, dict(zip(parameters, values, strict=True)), config)

    def backward(d_output, cache):
        d_x, d_parameters = feed_forward_backward(d_output, cache)
        return d_x, *(d_parameters[name] for name in parameters)

    def run_twin(x, *values):
        return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), (x,))

    name = f"feed-forward, {config.activation}"
    check_operation(
        name,
        forward,
        backward,
        run_twin,
        {"x": x} | parameters,
        dtypes=("float64", "float32", "bfloat16"),
        seed=seed,
        smooth=is_smooth(config),
    )
