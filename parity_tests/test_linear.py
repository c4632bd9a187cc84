"""Linear layer: spec, twin and complex step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.compare import check_operation
from parity_tests.strategies import arrays, seeds, sizes
from reference_numpy.linear import linear_backward, linear_forward
from torch_impl.linear import linear


@given(st.data(), st.sampled_from([1, 2, 3]), sizes(), sizes(), sizes(1), st.booleans(), seeds)
def test_parity(data, axes, inputs, outputs, rows, has_bias, seed):
    x = data.draw(arrays((*(2, 3)[: axes - 1], rows, inputs)))
    weight = data.draw(arrays((outputs, inputs)))
    bias = data.draw(arrays((outputs,))) if has_bias else None
    arguments = {"x": x, "weight": weight, "bias": bias}
    check_operation(
        "linear", linear_forward, linear_backward, linear, arguments, dtypes=("float64", "float32", "bfloat16"), seed=seed
    )


def test_widths_must_fit():
    import numpy as np

    with pytest.raises(ValueError, match="x: expected a last axis of 3, the weight's input width, got 2"):
        linear_forward(np.zeros((5, 2)), np.zeros((4, 3)))
