"""Named faults: the classic mistakes of people who write a transformer, each as a small change of one twin's text.

`make mutants` makes them one at a time and records which test notices (MUTANTS.md). A proof that lets one pass has a hole.
The gallery of pitfalls takes the same faults by name, to show what training with them looks like.
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPEC, TWIN = "reference_numpy", "torch_impl"


@dataclass(frozen=True)
class Mutant:
    """One fault: `before`, which must occur exactly once in the file, is replaced by `after`."""

    name: str
    """Snake case; a fault of the PyTorch twin starts with twin_."""
    mistake: str
    """What goes wrong, in words for someone who is learning."""
    file: str
    """Path from the root of the repository."""
    before: str
    after: str
    reason: str = ""
    """Why no test can notice it, if none can."""

    def applied_to(self, text: str) -> str:
        """The text with the fault. Raises ValueError unless `before` occurs exactly once."""
        count = text.count(self.before)
        if count != 1:
            raise ValueError(
                f"{self.name}: expected exactly one place in {self.file} that reads {self.before!r}, got {count}"
            )
        return text.replace(self.before, self.after)


def mutated_files(mutants: tuple[Mutant, ...], root: Path = ROOT) -> dict[str, str]:
    """Path from the root -> text with all these faults at once. Raises ValueError for one that does not apply."""
    files: dict[str, str] = {}
    for mutant in mutants:
        text = files.get(mutant.file) or (root / mutant.file).read_text(encoding="utf-8")
        files[mutant.file] = mutant.applied_to(text)
    return files


ACTIVATION = (
    Mutant(
        "gelu_variant_confused",
        "The tanh approximation is computed where the exact GELU is meant.",
        "reference_numpy/activation.py",
        "gate = 0.5 * (1 + erf(x * SQRT_HALF))",
        "gate = 0.5 * (1 + np.tanh(SQRT_2_OVER_PI * x * (1 + CUBIC * (x * x))))",
    ),
    Mutant(
        "gelu_argument_not_scaled",
        "erf(x) instead of erf(x / sqrt(2)): the error function is not the normal distribution.",
        "reference_numpy/activation.py",
        "gate = 0.5 * (1 + erf(x * SQRT_HALF))",
        "gate = 0.5 * (1 + erf(x))",
    ),
    Mutant(
        "gelu_gradient_without_density",
        "The product rule is forgotten: x Phi(x) is differentiated as if Phi were a constant.",
        "reference_numpy/activation.py",
        "return d_y * (gate + x * density)",
        "return d_y * gate",
    ),
    Mutant(
        "gelu_tanh_cubic_constant",
        "A slipped decimal point: 0.44715 instead of 0.044715.",
        "reference_numpy/activation.py",
        "CUBIC = 0.044715",
        "CUBIC = 0.44715",
    ),
    Mutant(
        "gelu_tanh_gradient_without_the_three",
        "The derivative of x^3 is taken as x^2, without the factor 3.",
        "reference_numpy/activation.py",
        "6 * SQRT_2_OVER_PI * CUBIC * (x * x)",
        "2 * SQRT_2_OVER_PI * CUBIC * (x * x)",
    ),
    Mutant(
        "relu_gradient_not_gated",
        "The gradient passes where the unit was off.",
        "reference_numpy/activation.py",
        "return np.where(x.real <= 0, 0, d_y)",
        "return d_y",
    ),
    Mutant(
        "relu_squared_gradient_without_the_two",
        "The derivative of x^2 is taken as x.",
        "reference_numpy/activation.py",
        "return d_y * (2 * positive)",
        "return d_y * positive",
    ),
    Mutant(
        "silu_gradient_of_the_sigmoid",
        "The derivative of the sigmoid is returned, not that of x times the sigmoid.",
        "reference_numpy/activation.py",
        "return d_y * (gate + x * (gate * (1 - gate)))",
        "return d_y * (gate * (1 - gate))",
    ),
    Mutant(
        "silu_twice_as_steep",
        "The half inside the tanh is lost: the result is x times sigmoid(2 x).",
        "reference_numpy/activation.py",
        "gate = 0.5 * (1 + np.tanh(0.5 * x))",
        "gate = 0.5 * (1 + np.tanh(x))",
    ),
    Mutant(
        "twin_gelu_variant_confused",
        "torch's approximate GELU is used where the exact one is meant.",
        "torch_impl/activation.py",
        "return F.gelu(x)",
        'return F.gelu(x, approximate="tanh")',
    ),
    Mutant(
        "twin_relu_squared_keeps_negatives",
        "x is squared without cutting the negative half off: large negative inputs pass too.",
        "torch_impl/activation.py",
        "positive = F.relu(x)",
        "positive = x",
    ),
    Mutant(
        "twin_relu_squared_gradient_without_the_two",
        "The derivative of p^2 is taken for p.",
        "torch_impl/activation.py",
        "return (d_y * positive).mul_(2)",
        "return d_y * positive",
    ),
    Mutant(
        "twin_silu_is_a_sigmoid",
        "The factor x is forgotten: SiLU becomes a plain sigmoid.",
        "torch_impl/activation.py",
        "return F.silu(x)",
        "return x.sigmoid()",
    ),
)

LINEAR = (
    Mutant(
        "weight_gradient_transposed",
        "The gradient of the weight comes out as (in, out), while the weight is (out, in).",
        "reference_numpy/linear.py",
        "d_weight = d_rows.T @ _rows(x)",
        "d_weight = _rows(x).T @ d_rows",
    ),
    Mutant(
        "input_gradient_through_the_wrong_side",
        "The gradient goes back through W^T, the matrix of the forward, instead of W.",
        "reference_numpy/linear.py",
        "d_x = (d_rows @ weight).reshape(x.shape)",
        "d_x = (d_rows @ weight.T).reshape(x.shape)",
    ),
    Mutant(
        "bias_gradient_not_summed",
        "The bias is added to every row, but its gradient takes the first row only.",
        "reference_numpy/linear.py",
        "d_bias = d_rows.sum(axis=0) if has_bias else None",
        "d_bias = d_rows[0] if has_bias else None",
    ),
    Mutant(
        "bias_gradient_averaged",
        "The gradient of the bias is the mean over the rows, not the sum.",
        "reference_numpy/linear.py",
        "d_bias = d_rows.sum(axis=0) if has_bias else None",
        "d_bias = d_rows.mean(axis=0) if has_bias else None",
    ),
    Mutant(
        "twin_linear_bias_forgotten",
        "The bias is a parameter that nobody adds.",
        "torch_impl/linear.py",
        "return F.linear(x, weight, bias)",
        "return F.linear(x, weight)",
    ),
    Mutant(
        "twin_onednn_bias_with_its_strides",
        "oneDNN is given a bias that is not contiguous, and reads its neighbours in memory.",
        "torch_impl/linear.py",
        "bias = None if bias is None else bias.contiguous()",
        "bias = None if bias is None else bias",
    ),
    Mutant(
        "twin_onednn_input_gradient_through_the_wrong_side",
        "oneDNN multiplies by the transpose of its second factor, and the gradient of x is given W instead of W^T.",
        "torch_impl/linear.py",
        "d_x = _product(d_rows, weight.T).view(ctx.shape) if wanted_x else None",
        "d_x = _product(d_rows, weight).view(ctx.shape) if wanted_x else None",
    ),
    Mutant(
        "twin_onednn_weight_gradient_transposed",
        "Where the narrower factor goes first, the gradient of the weight comes out as (in, out).",
        "torch_impl/linear.py",
        "else _product(b.T, a.T).T",
        "else _product(b.T, a.T)",
    ),
    Mutant(
        "twin_onednn_bias_gradient_forgotten",
        "The layer's own backward pass gives the bias no gradient.",
        "torch_impl/linear.py",
        "return d_x, d_weight, d_rows.sum(dim=0) if wanted_bias else None",
        "return d_x, d_weight, None",
    ),
    Mutant(
        "twin_onednn_for_every_precision",
        "float64 goes to oneDNN, too, which has no product for it.",
        "torch_impl/linear.py",
        "x.dtype == weight.dtype == torch.float32",
        "x.dtype == weight.dtype",
    ),
)

SOFTMAX = (
    Mutant(
        "softmax_over_the_wrong_axis",
        "The denominator sums over the queries instead of the keys: rows of weights no longer sum to 1.",
        "reference_numpy/softmax.py",
        "total = exponential.sum(axis=-1, keepdims=True)",
        "total = exponential.sum(axis=-2, keepdims=True)",
    ),
    Mutant(
        "softmax_without_the_shift",
        "The largest entry is not subtracted first: large scores overflow to inf / inf.",
        "reference_numpy/softmax.py",
        "exponential = np.exp(x - np.where(largest == -np.inf, 0, largest))",
        "exponential = np.exp(x)",
    ),
    Mutant(
        "softmax_empty_row_is_nan",
        "A query that may attend to nothing divides 0 by 0.",
        "reference_numpy/softmax.py",
        "exponential /= np.where(total == 0, 1, total)",
        "exponential /= total",
    ),
    Mutant(
        "softmax_gradient_diagonal_only",
        "The Jacobian's diagonal p (1 - p) is used as for a sigmoid; the entries are coupled, though.",
        "reference_numpy/softmax.py",
        'return p * (d_p - np.einsum("...i,...i->...", d_p, p)[..., None])',
        "return p * (1 - p) * d_p",
    ),
    Mutant(
        "softmax_gradient_without_the_sum",
        "The term that keeps the weights' sum at 1 is missing from the gradient.",
        "reference_numpy/softmax.py",
        'return p * (d_p - np.einsum("...i,...i->...", d_p, p)[..., None])',
        "return p * d_p",
    ),
    Mutant(
        "twin_softmax_over_the_wrong_axis",
        "The weights sum to 1 over the queries instead of the keys.",
        "torch_impl/softmax.py",
        "torch.softmax(x, dim=-1)",
        "torch.softmax(x, dim=-2)",
    ),
    Mutant(
        "twin_softmax_empty_row_is_nan",
        "A query that may attend to nothing gets NaN, as from torch.softmax itself.",
        "torch_impl/softmax.py",
        "return torch.where(empty, 0, torch.softmax(x, dim=-1))",
        "return torch.softmax(x, dim=-1)",
    ),
    Mutant(
        "twin_softmax_empty_row_is_uniform",
        "A query that may attend to nothing attends to everything alike, which is what a mask of -1e9 does.",
        "torch_impl/softmax.py",
        "return torch.where(empty, 0, torch.softmax(x, dim=-1))",
        "return torch.softmax(torch.where(empty, 0, x), dim=-1)",
    ),
    Mutant(
        "twin_softmax_gradient_over_the_wrong_axis",
        "The gradient takes the sum that keeps the weights' at 1 over the queries instead of the keys.",
        "torch_impl/softmax.py",
        "_softmax_backward_data(d_p, p, -1, p.dtype)",
        "_softmax_backward_data(d_p, p, -2, p.dtype)",
    ),
)

NORMALIZATION = (
    Mutant(
        "layer_norm_unbiased_variance",
        "The variance divides by D - 1 instead of D.",
        "reference_numpy/normalization.py",
        "variance = _mean_product(centred, centred)",
        "variance = (centred * centred).sum(axis=-1, keepdims=True) / max(x.shape[-1] - 1, 1)",
    ),
    Mutant(
        "layer_norm_epsilon_outside_the_root",
        "Epsilon is added to the deviation instead of the variance.",
        "reference_numpy/normalization.py",
        "inverse = 1 / np.sqrt(variance + epsilon)",
        "inverse = 1 / (np.sqrt(variance) + epsilon)",
    ),
    Mutant(
        "layer_norm_over_the_tokens",
        "The mean is taken over the sequence instead of the channels: every token looks at all others, the future included.",
        "reference_numpy/normalization.py",
        "centred = x - _mean(x)",
        "centred = x - x.mean(axis=-2, keepdims=True)",
    ),
    Mutant(
        "layer_norm_gradient_without_the_mean_term",
        "The path through the mean is missing from the gradient.",
        "reference_numpy/normalization.py",
        "d_x = inverse * (d_n - _mean(d_n) - normalized * projection)",
        "d_x = inverse * (d_n - normalized * projection)",
    ),
    Mutant(
        "layer_norm_gradient_without_the_variance_term",
        "The path through the variance is missing from the gradient.",
        "reference_numpy/normalization.py",
        "d_x = inverse * (d_n - _mean(d_n) - normalized * projection)",
        "d_x = inverse * (d_n - _mean(d_n))",
    ),
    Mutant(
        "layer_norm_gradient_ignores_the_gain",
        "The gradient of the input does not pass through the gain.",
        "reference_numpy/normalization.py",
        "normalized, inverse, weight, has_bias = cache\n    d_n = d_y * weight",
        "normalized, inverse, weight, has_bias = cache\n    d_n = d_y",
    ),
    Mutant(
        "layer_norm_gain_gradient_of_the_bias",
        "The gain gets the bias's gradient: the factor, the normalised input, is forgotten.",
        "reference_numpy/normalization.py",
        "return d_x, _sum_rows(d_y * normalized), d_bias",
        "return d_x, _sum_rows(d_y), d_bias",
    ),
    Mutant(
        "norm_gradients_summed_over_the_batch_alone",
        "The gain is shared by all positions, but its gradient is summed over the sequences only.",
        "reference_numpy/normalization.py",
        "return x.sum(axis=tuple(range(x.ndim - 1)))",
        "return x.sum(axis=0)",
    ),
    Mutant(
        "rms_norm_subtracts_the_mean",
        "RMSNorm centres the input, as LayerNorm does.",
        "reference_numpy/normalization.py",
        "normalized = x * inverse",
        "normalized = (x - x.mean(axis=-1, keepdims=True)) * inverse",
    ),
    Mutant(
        "rms_norm_gradient_without_projection",
        "The root mean square is differentiated as if it were a constant.",
        "reference_numpy/normalization.py",
        "return inverse * (d_n - normalized * projection), _sum_rows(d_y * normalized)",
        "return inverse * d_n, _sum_rows(d_y * normalized)",
    ),
    Mutant(
        "twin_layer_norm_bias_dropped",
        "The bias of LayerNorm is never added.",
        "torch_impl/normalization.py",
        "return F.layer_norm(x, weight.shape, weight, bias, epsilon)",
        "return F.layer_norm(x, weight.shape, weight, None, epsilon)",
    ),
    Mutant(
        "twin_layer_norm_of_rows_as_they_are",
        "The rows are not centred first, and torch's kernels lose digits where the mean is far above the deviation.",
        "torch_impl/normalization.py",
        "centred = x - x.mean(dim=-1, keepdim=True)",
        "centred = x",
    ),
    Mutant(
        "twin_rms_norm_default_epsilon",
        "Epsilon is not passed on, and the library's default is another one.",
        "torch_impl/normalization.py",
        "return _RMSNorm.apply(x, weight, epsilon)",
        "return _RMSNorm.apply(x, weight, torch.finfo(x.dtype).eps)",
    ),
    Mutant(
        "twin_rms_norm_gradient_without_projection",
        "The gradient keeps its part along x, which cannot change a normalised row.",
        "torch_impl/normalization.py",
        "d_x = torch.addcmul(d_normalized, normalized, along, value=-1).mul_(inverse)",
        "d_x = d_normalized * inverse",
    ),
    Mutant(
        "twin_norm_epsilon_of_the_config_ignored",
        "The epsilon in the configuration changes nothing.",
        "torch_impl/normalization.py",
        "self.epsilon = config.norm_epsilon",
        "self.epsilon = 1e-5",
    ),
)

DROPOUT = (
    Mutant(
        "dropout_not_scaled",
        "What is kept is not divided by 1 - rate: activations are smaller in training than in evaluation.",
        "reference_numpy/dropout.py",
        "y = x if keep is None else np.where(keep, x * (1 / (1 - rate)), 0)",
        "y = x if keep is None else np.where(keep, x, 0)",
    ),
    Mutant(
        "dropout_keeps_what_it_should_drop",
        "The comparison is the wrong way round: a rate of 0.1 drops nine units of ten.",
        "reference_numpy/dropout.py",
        "return generator.random(shape, dtype=np.float32) >= rate",
        "return generator.random(shape, dtype=np.float32) < rate",
    ),
    Mutant(
        "dropout_gradient_without_the_mask",
        "Gradients flow into units that had been dropped.",
        "reference_numpy/dropout.py",
        "d_x, _ = dropout_forward(d_y, cache.rate, cache.keep)",
        "d_x, _ = dropout_forward(d_y, cache.rate, None)",
    ),
    Mutant(
        "dropout_in_evaluation",
        "Units are dropped outside of training, too.",
        "reference_numpy/block.py",
        "generator is None or config.dropout == 0 else dropout_mask(x.shape, config.dropout, generator)",
        "config.dropout == 0 else dropout_mask(x.shape, config.dropout, generator or np.random.default_rng(0))",
    ),
    Mutant(
        "dropout_mask_shared_by_the_batch",
        "One mask is drawn and used for every sequence of the batch.",
        "reference_numpy/block.py",
        "dropout_mask(x.shape, config.dropout, generator)",
        "dropout_mask(x.shape[1:], config.dropout, generator)",
    ),
    Mutant(
        "dropout_gradient_forgotten",
        "The backward goes past the dropout of the sub-layer as if nothing had been dropped.",
        "reference_numpy/block.py",
        "d_normed, d_sublayer = sublayer_backward(dropout_backward(d_y, cache.dropout))",
        "d_normed, d_sublayer = sublayer_backward(d_y)",
    ),
    Mutant(
        "twin_dropout_not_scaled",
        "What is kept is not divided by 1 - rate: activations are smaller in training than in evaluation.",
        "torch_impl/dropout.py",
        "return x if keep is None else torch.where(keep, x * (1 / (1 - rate)), 0)",
        "return x if keep is None else torch.where(keep, x, 0)",
    ),
    Mutant(
        "twin_dropout_keeps_what_it_should_drop",
        "On the device's own random stream, a rate of 0.1 drops nine units of ten.",
        "torch_impl/dropout.py",
        "return torch.rand(shape, generator=generator, device=device) >= rate",
        "return torch.rand(shape, generator=generator, device=device) < rate",
    ),
    Mutant(
        "twin_dropout_in_evaluation",
        "Units are dropped outside of training, too.",
        "torch_impl/block.py",
        "if generator is None or config.dropout == 0:",
        "if config.dropout == 0:",
    ),
)

EMBEDDING = (
    Mutant(
        "repeated_token_gradient_overwritten",
        "A token that occurs twice gets the gradient of its last occurrence instead of the sum.",
        "reference_numpy/embedding.py",
        "d_weight[rows_read] = np.add.reduceat(d_y.reshape(tokens.size, d_y.shape[-1])[order], first, axis=0)",
        "d_weight[tokens] = d_y",
    ),
    Mutant(
        "embedding_not_scaled",
        "The factor sqrt(D) is left out where the configuration asks for it.",
        "reference_numpy/model.py",
        "x = x * scale",
        "x = x * 1.0",
    ),
    Mutant(
        "embedding_scale_missing_from_the_gradient",
        "The table was scaled on the way in, but its gradient is not.",
        "reference_numpy/model.py",
        "embedding_backward(d_x * cache.scale, cache.token)",
        "embedding_backward(d_x, cache.token)",
    ),
    Mutant(
        "embedding_scale_on_the_positions",
        "The positions are scaled by sqrt(D) along with the tokens.",
        "reference_numpy/model.py",
        "x = x + learned",
        "x = x + learned * scale",
    ),
    Mutant(
        "position_gradient_of_one_sequence",
        "All sequences of a batch share the position table, but its gradient takes the first sequence only.",
        "reference_numpy/model.py",
        "embedding_backward(d_x.sum(axis=0), cache.position)",
        "embedding_backward(d_x[0], cache.position)",
    ),
    Mutant(
        "position_offset_missing_in_decoding",
        "Every new token is placed at position 0 when earlier ones come from the cache.",
        "reference_numpy/model.py",
        "positions = np.arange(start, start + T)",
        "positions = np.arange(T)",
    ),
    Mutant(
        "twin_token_zero_is_never_trained",
        "Token 0 is declared to be padding, and the table's first row gets no gradient.",
        "torch_impl/embedding.py",
        "return F.embedding(tokens, weight)",
        "return F.embedding(tokens, weight, padding_idx=0)",
    ),
    Mutant(
        "twin_embedding_scale_on_the_wrong_side",
        "The embedding is divided by sqrt(D) instead of multiplied.",
        "torch_impl/model.py",
        "x = x * math.sqrt(self.config.width)",
        "x = x / math.sqrt(self.config.width)",
    ),
    Mutant(
        "twin_embedding_not_scaled",
        "The factor sqrt(D) is left out where the configuration asks for it.",
        "torch_impl/model.py",
        "x = x * math.sqrt(self.config.width)",
        "x = x * 1.0",
    ),
    Mutant(
        "twin_position_offset_missing_in_decoding",
        "Every new token is placed at position 0 when earlier ones come from the cache.",
        "torch_impl/model.py",
        "x = x + self.position_embedding.weight[start:stop]",
        "x = x + self.position_embedding.weight[: tokens.shape[1]]",
    ),
    Mutant(
        "twin_positions_not_added",
        "The sinusoidal table is not added: the model sees a bag of tokens.",
        "torch_impl/model.py",
        "x = x + sinusoidal_table(start, stop, self.config.width, x.dtype, x.device)",
        "x = x + 0 * sinusoidal_table(start, stop, self.config.width, x.dtype, x.device)",
    ),
)

POSITION = (
    Mutant(
        "sinusoidal_frequency_of_the_cosine",
        "Each channel gets its own frequency, so that sine and cosine are no longer pairs.",
        "reference_numpy/position.py",
        "angle = positions[:, None] / BASE ** ((channel - channel % 2) / width)",
        "angle = positions[:, None] / BASE ** (channel / width)",
    ),
    Mutant(
        "sinusoidal_phase_swapped",
        "Cosines stand in the even channels and sines in the odd ones.",
        "reference_numpy/position.py",
        "return np.where(channel % 2 == 0, np.sin(angle), np.cos(angle)).astype(dtype)",
        "return np.where(channel % 2 == 0, np.cos(angle), np.sin(angle)).astype(dtype)",
    ),
    Mutant(
        "rotary_turns_the_other_way",
        "Both signs of the rotation are swapped: clockwise instead of counter-clockwise, unlike every published checkpoint.",
        "reference_numpy/position.py",
        "return np.concatenate((a * cosine - b * sine, b * cosine + a * sine), axis=-1)",
        "return np.concatenate((a * cosine + b * sine, b * cosine - a * sine), axis=-1)",
    ),
    Mutant(
        "rotary_one_sign_wrong",
        "Both halves add: this is no rotation, and the product of query and key no longer depends on their distance alone.",
        "reference_numpy/position.py",
        "return np.concatenate((a * cosine - b * sine, b * cosine + a * sine), axis=-1)",
        "return np.concatenate((a * cosine + b * sine, b * cosine + a * sine), axis=-1)",
    ),
    Mutant(
        "rotary_gradient_turns_forward",
        "The backward turns by the same angle as the forward instead of back.",
        "reference_numpy/position.py",
        "return _rotate(d_y, cache.cosine, -cache.sine)",
        "return _rotate(d_y, cache.cosine, cache.sine)",
    ),
    Mutant(
        "rotary_pairs_interleaved",
        "Neighbouring channels are paired, the paper's layout, with weights made for two halves.",
        "reference_numpy/position.py",
        "a, b = x[..., :half], x[..., half:]",
        "a, b = x[..., ::2], x[..., 1::2]",
    ),
    Mutant(
        "rotary_frequencies_too_steep",
        "The exponent divides by K/2 instead of K: the frequencies fall to 10000^-2.",
        "reference_numpy/position.py",
        "theta = BASE ** (-np.arange(0, head_width, 2) / head_width)",
        "theta = BASE ** (-np.arange(0, head_width, 2) / (head_width // 2))",
    ),
    Mutant(
        "alibi_sign",
        "Distant keys are rewarded instead of penalised.",
        "reference_numpy/position.py",
        "return -slopes[:, None, None] * distance",
        "return slopes[:, None, None] * distance",
    ),
    Mutant(
        "alibi_distance_with_a_sign",
        "Later keys get a bonus instead of a penalty: the absolute value is missing.",
        "reference_numpy/position.py",
        "distance = np.abs(rows[:, None] - columns[None, :]).astype(slopes.dtype)",
        "distance = (rows[:, None] - columns[None, :]).astype(slopes.dtype)",
    ),
    Mutant(
        "alibi_slopes_start_at_one",
        "The first head's slope is 2^0: the exponent counts from 0 instead of 1.",
        "reference_numpy/position.py",
        "slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)",
        "slopes = 2.0 ** (-8 * np.arange(power) / power)",
    ),
    Mutant(
        "alibi_slopes_between_not_skipped",
        "For a number of heads that is no power of two, every slope of the next power is taken instead of every other.",
        "reference_numpy/position.py",
        "between = 2.0 ** (-4 * np.arange(1, 2 * (heads - power), 2) / power)",
        "between = 2.0 ** (-4 * np.arange(1, heads - power + 1) / power)",
    ),
    Mutant(
        "twin_rotary_turns_the_other_way",
        "Both signs of the rotation are swapped: clockwise instead of counter-clockwise.",
        "torch_impl/position.py",
        "return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1)",
        "return torch.cat((a * cosine + b * sine, b * cosine - a * sine), dim=-1)",
    ),
    Mutant(
        "twin_rotary_gradient_turned_forward",
        "The gradient is turned as the input was, instead of back.",
        "torch_impl/position.py",
        "return _rotate(d_y, cosine, -sine), None, None",
        "return _rotate(d_y, cosine, sine), None, None",
    ),
    Mutant(
        "twin_alibi_aligned_at_the_start",
        "With a cache the queries are taken for the first positions, although they are the last.",
        "torch_impl/position.py",
        "rows, columns = torch.arange(S - T, S, device=slopes.device)",
        "rows, columns = torch.arange(T, device=slopes.device)",
    ),
)

MASK = (
    Mutant(
        "causal_mask_sees_the_next_token",
        "Off by one: a token may look at the one that it has to predict, so the loss falls to almost nothing.",
        "reference_numpy/mask.py",
        "mask = ahead <= 0 if mask is None else mask & (ahead <= 0)",
        "mask = ahead <= 1 if mask is None else mask & (ahead <= 1)",
    ),
    Mutant(
        "causal_mask_hides_the_token_itself",
        "Off by one the other way: a token may look at earlier ones only, and the first at nothing.",
        "reference_numpy/mask.py",
        "mask = ahead <= 0 if mask is None else mask & (ahead <= 0)",
        "mask = ahead < 0 if mask is None else mask & (ahead < 0)",
    ),
    Mutant(
        "causal_mask_transposed",
        "The triangle is the wrong one: tokens look at the future alone.",
        "reference_numpy/mask.py",
        "mask = ahead <= 0 if mask is None else mask & (ahead <= 0)",
        "mask = ahead >= 0 if mask is None else mask & (ahead >= 0)",
    ),
    Mutant(
        "window_off_by_one",
        "A window of 3 reaches one token further on either side.",
        "reference_numpy/mask.py",
        "near = np.abs(ahead) < window",
        "near = np.abs(ahead) <= window",
    ),
    Mutant(
        "padding_mask_one_too_many",
        "The first padding token counts as real.",
        "reference_numpy/mask.py",
        "return np.arange(S) < lengths[:, None]",
        "return np.arange(S) <= lengths[:, None]",
    ),
    Mutant(
        "padding_mask_inverted",
        "True means padding, the other library's convention: everything real is masked out.",
        "reference_numpy/mask.py",
        "return np.arange(S) < lengths[:, None]",
        "return np.arange(S) >= lengths[:, None]",
    ),
    Mutant(
        "padding_hides_queries_instead_of_keys",
        "The mask is laid along the wrong axis: padding is switched off as a reader and still read by all others.",
        "reference_numpy/model.py",
        "return None if padding is None else padding[:, None, None, :]",
        "return None if padding is None else padding[:, None, :, None]",
    ),
    Mutant(
        "twin_causal_mask_sees_the_next_token",
        "Off by one: a token may look at the one that it has to predict.",
        "torch_impl/mask.py",
        "mask = ahead <= 0 if mask is None else mask & (ahead <= 0)",
        "mask = ahead <= 1 if mask is None else mask & (ahead <= 1)",
    ),
    Mutant(
        "twin_masks_joined_by_or",
        "Causality or padding is enough to be seen, where both are needed: padding in the past is visible.",
        "torch_impl/mask.py",
        "mask = ahead <= 0 if mask is None else mask & (ahead <= 0)",
        "mask = ahead <= 0 if mask is None else mask | (ahead <= 0)",
    ),
    Mutant(
        "twin_window_off_by_one",
        "A window of 3 reaches one token further on either side.",
        "torch_impl/mask.py",
        "near = ahead.abs() < window",
        "near = ahead.abs() <= window",
    ),
)

ATTENTION = (
    Mutant(
        "scores_not_scaled",
        "The scores are not divided by sqrt(K): with wide heads the softmax saturates and passes hardly any gradient.",
        "reference_numpy/attention.py",
        "scores = (query * (1 / math.sqrt(K))) @ key.mT",
        "scores = query @ key.mT",
    ),
    Mutant(
        "scores_scaled_by_the_model_width",
        "The scores are divided by sqrt(D), the width of all heads together, instead of sqrt(K), the width of one.",
        "reference_numpy/attention.py",
        "scores = (query * (1 / math.sqrt(K))) @ key.mT",
        "scores = (query * (1 / math.sqrt(query.shape[1] * K))) @ key.mT",
    ),
    Mutant(
        "masked_scores_are_zero",
        "Masked scores are set to 0 instead of -inf: exp(0) = 1, so what is masked still takes part.",
        "reference_numpy/attention.py",
        "np.copyto(scores, -np.inf, where=~allowed)",
        "np.copyto(scores, 0, where=~allowed)",
    ),
    Mutant(
        "garbage_in_padding_leaks",
        "A weight of 0 times a NaN in a masked value is NaN.",
        "reference_numpy/attention.py",
        "key, value = only_seen(key, seen), only_seen(value, seen)",
        "key = only_seen(key, seen)",
    ),
    Mutant(
        "causal_blocks_keep_the_last_gradient",
        "Keys that several blocks of queries attended to get the gradient of the last block alone.",
        "reference_numpy/attention.py",
        "d_key[:, :, :stop] += d_block_key",
        "d_key[:, :, :stop] = d_block_key",
    ),
    Mutant(
        "causal_blocks_in_reverse",
        "The blocks' gradients of the queries are put together from the last block to the first.",
        "reference_numpy/attention.py",
        "d_queries.append(d_query)",
        "d_queries.insert(0, d_query)",
    ),
    Mutant(
        "value_gradient_not_transposed",
        "The gradient of the values goes through the weights as they are instead of transposed.",
        "reference_numpy/attention.py",
        "d_value = weights.mT @ d_output",
        "d_value = weights @ d_output",
    ),
    Mutant(
        "query_gradient_without_the_scale",
        "The factor 1/sqrt(K) of the forward is missing from the gradient of the queries.",
        "reference_numpy/attention.py",
        "d_query = (d_scores @ key) * scale",
        "d_query = d_scores @ key",
    ),
    Mutant(
        "key_gradient_without_the_scale",
        "The factor 1/sqrt(K) of the forward is missing from the gradient of the keys.",
        "reference_numpy/attention.py",
        "d_key = d_scores.mT @ (query * scale)",
        "d_key = d_scores.mT @ query",
    ),
    Mutant(
        "softcap_gradient_missing",
        "The derivative of the soft cap's tanh is left out.",
        "reference_numpy/attention.py",
        "d_scores = d_scores * (1 - capped * capped)",
        "d_scores = d_scores * np.ones_like(capped)",
    ),
    Mutant(
        "softcap_not_multiplied_back",
        "The scores stay between -1 and 1 whatever the cap is.",
        "reference_numpy/attention.py",
        "scores = capped * softcap",
        "scores = capped",
    ),
    Mutant(
        "heads_split_along_the_wrong_axes",
        "The channels are reshaped straight to (B, H, T, K) without a transpose: each head gets a mixture of tokens.",
        "reference_numpy/attention.py",
        "return x.reshape(B, T, heads, width // heads).swapaxes(1, 2)",
        "return x.reshape(B, heads, T, width // heads)",
    ),
    Mutant(
        "heads_merged_without_a_transpose",
        "The heads are flattened in the order in which they lie in memory, which mixes tokens.",
        "reference_numpy/attention.py",
        "return x.swapaxes(1, 2).reshape(B, T, H * K)",
        "return x.reshape(B, T, H * K)",
    ),
    Mutant(
        "grouped_heads_tiled",
        "Key-value heads are laid out 0 1 0 1 instead of 0 0 1 1: queries meet the wrong group's keys.",
        "reference_numpy/attention.py",
        "np.repeat(x, heads // x.shape[1], axis=1)",
        "np.tile(x, (1, heads // x.shape[1], 1, 1))",
    ),
    Mutant(
        "decoding_reads_the_first_keys_of_a_window",
        "One query of a window reads the keys at the start of the buffer instead of those at its end.",
        "reference_numpy/attention.py",
        "key, value = key[:, :, first:], value[:, :, first:]",
        "key, value = key[:, :, : -first or None], value[:, :, : -first or None]",
    ),
    Mutant(
        "decoding_masks_the_first_keys_of_a_window",
        "One query of a window is given the mask of the keys at the start of the buffer.",
        "reference_numpy/attention.py",
        "np.atleast_2d(mask)[..., first:]",
        "np.atleast_2d(mask)[..., : -first or None]",
    ),
    Mutant(
        "decoding_takes_one_head_for_all",
        "A mask of one query that differs between heads is taken for one that does not.",
        "reference_numpy/attention.py",
        "return mask is None or mask.ndim < 3 or mask.shape[-3] == 1",
        "return True",
    ),
    Mutant(
        "grouped_gradient_averaged",
        "A shared key-value head takes the mean of its users' gradients instead of the sum.",
        "reference_numpy/attention.py",
        "d_x.reshape(B, groups, H // groups, S, K).sum(axis=2)",
        "d_x.reshape(B, groups, H // groups, S, K).mean(axis=2)",
    ),
    Mutant(
        "grouped_gradient_of_the_wrong_group",
        "Gradients are collected as if the heads were laid out 0 1 0 1.",
        "reference_numpy/attention.py",
        "d_x.reshape(B, groups, H // groups, S, K).sum(axis=2)",
        "d_x.reshape(B, H // groups, groups, S, K).sum(axis=1)",
    ),
    Mutant(
        "cross_attention_from_the_wrong_side",
        "Keys and values come from the decoder itself instead of the encoder: the source is never read.",
        "reference_numpy/attention.py",
        "inputs = x if memory is None else memory",
        "inputs = x",
    ),
    Mutant(
        "cross_attention_windowed",
        "The window of self-attention also cuts the source, whose positions have nothing to do with the target's.",
        "reference_numpy/attention.py",
        "window = None if cross else config.window",
        "window = config.window",
    ),
    Mutant(
        "rotary_in_cross_attention",
        "Queries and keys of cross-attention are turned, as if source and target shared their positions.",
        "reference_numpy/attention.py",
        'if config.position == "rotary" and not cross:',
        'if config.position == "rotary":',
    ),
    Mutant(
        "rotary_offset_missing_in_decoding",
        "Every new query is turned as if it stood at position 0.",
        "reference_numpy/attention.py",
        "query, query_rotary = rotary_forward(query, start + np.arange(query.shape[2]))",
        "query, query_rotary = rotary_forward(query, np.arange(query.shape[2]))",
    ),
    Mutant(
        "cache_stays_after_the_prompt",
        "The cache stays what it was after the prompt: tokens that were sampled since are forgotten.",
        "reference_numpy/attention.py",
        "self.length = stop",
        "self.length = self.length or stop",
    ),
    Mutant(
        "stale_cache",
        "New keys overwrite the first ones in the buffer, and the last places hold what was in memory.",
        "reference_numpy/attention.py",
        "self.key[:, :, self.length : stop] = key",
        "self.key[:, :, : key.shape[2]] = key",
    ),
    Mutant(
        "cache_forgets_when_it_grows",
        "A full buffer is exchanged for a larger one, but the old keys and values are not copied.",
        "reference_numpy/attention.py",
        "buffer[:, :, : self.length] = old[:, :, : self.length]",
        "buffer[:, :, : self.length] = 0",
    ),
    Mutant(
        "linear_state_not_carried",
        "Linear attention starts from nothing at every new token.",
        "reference_numpy/attention.py",
        "state=None if own is None else own.state",
        "state=None",
    ),
    Mutant(
        "linear_length_not_counted",
        "The number of cached tokens is lost, and with it the position of the next one.",
        "reference_numpy/attention.py",
        "own.state, own.length = linear.state, own.length + key.shape[2]",
        "own.state, own.length = linear.state, key.shape[2]",
    ),
    Mutant(
        "memory_gradient_without_the_values",
        "The encoder hears of the keys only; what the values need is lost.",
        "reference_numpy/attention.py",
        "return d_x, d_from_key + d_from_value, d_parameters",
        "return d_x, d_from_key, d_parameters",
    ),
    Mutant(
        "twin_scores_not_scaled",
        "The scores are not divided by sqrt(K), in the explicit path, which shows its weights.",
        "torch_impl/attention.py",
        "scores = (query * (1 / math.sqrt(K))) @ key.mT",
        "scores = query @ key.mT",
    ),
    Mutant(
        "twin_softcap_not_multiplied_back",
        "The scores stay between -1 and 1 whatever the cap is.",
        "torch_impl/attention.py",
        "scores = torch.tanh(scores / softcap) * softcap",
        "scores = torch.tanh(scores / softcap)",
    ),
    Mutant(
        "twin_heads_split_along_the_wrong_axes",
        "The channels are reshaped straight to (B, H, T, K) without a transpose: each head gets a mixture of tokens.",
        "torch_impl/attention.py",
        "return x.view(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)",
        "return x.reshape(x.shape[0], heads, x.shape[1], x.shape[2] // heads)",
    ),
    Mutant(
        "twin_heads_merged_without_a_transpose",
        "The heads are flattened in the order in which they lie in memory, which mixes tokens.",
        "torch_impl/attention.py",
        "return x.transpose(1, 2).flatten(2)",
        "return x.reshape(x.shape[0], x.shape[2], -1)",
    ),
    Mutant(
        "twin_grouped_heads_tiled",
        "Key-value heads are laid out 0 1 0 1 instead of 0 0 1 1: queries meet the wrong group's keys.",
        "torch_impl/attention.py",
        "x.repeat_interleave(heads // x.shape[1], dim=1)",
        "x.repeat(1, heads // x.shape[1], 1, 1)",
    ),
    Mutant(
        "twin_decoding_reads_the_first_keys_of_a_window",
        "One query of a window reads the keys at the start of the buffer instead of those at its end.",
        "torch_impl/attention.py",
        "key, value = key[:, :, first:], value[:, :, first:]",
        "key, value = key[:, :, : -first or None], value[:, :, : -first or None]",
    ),
    Mutant(
        "twin_decoding_masks_the_first_keys_of_a_window",
        "One query of a window is given the mask of the keys at the start of the buffer.",
        "torch_impl/attention.py",
        "torch.atleast_2d(mask)[..., first:]",
        "torch.atleast_2d(mask)[..., : -first or None]",
    ),
    Mutant(
        "twin_decoding_takes_one_head_for_all",
        "A mask of one query that differs between heads is taken for one that does not.",
        "torch_impl/attention.py",
        "return mask is None or mask.ndim < 3 or mask.shape[-3] == 1",
        "return True",
    ),
    Mutant(
        "twin_stacked_projections_in_another_order",
        "The one product that makes query, key and value is cut as query, value, key.",
        "torch_impl/attention.py",
        "query, key, value = together.split(",
        "query, value, key = together.split(",
    ),
    Mutant(
        "twin_cross_attention_from_the_wrong_side",
        "The keys of cross-attention come from the decoder itself instead of the encoder.",
        "torch_impl/attention.py",
        "self.query(x), self.key(memory), self.value(memory)",
        "self.query(x), self.key(x), self.value(memory)",
    ),
    Mutant(
        "twin_cross_attention_windowed",
        "The window of self-attention also cuts the source, whose positions have nothing to do with the target's.",
        "torch_impl/attention.py",
        "window = None if self.cross else config.window",
        "window = config.window",
    ),
    Mutant(
        "twin_rotary_in_cross_attention",
        "Queries and keys of cross-attention are turned, as if source and target shared their positions.",
        "torch_impl/attention.py",
        'if config.position == "rotary" and not self.cross:',
        'if config.position == "rotary":',
    ),
    Mutant(
        "twin_qk_norm_after_the_rotation",
        "Queries and keys are normalised after they are turned: the gain no longer belongs to a channel.",
        "torch_impl/attention.py",
        """\
            if config.qk_norm:
                query, key = self.query_norm(query), self.key_norm(key)
            if config.position == "rotary" and not self.cross:
                query, key = rotary(query, start), rotary(key, start)
""",
        """\
            if config.position == "rotary" and not self.cross:
                query, key = rotary(query, start), rotary(key, start)
            if config.qk_norm:
                query, key = self.query_norm(query), self.key_norm(key)
""",
    ),
    Mutant(
        "twin_rotary_offset_missing_in_decoding",
        "New queries and keys are turned as if they stood at position 0.",
        "torch_impl/attention.py",
        "start = 0 if past is None or self.cross else past.length",
        "start = 0",
    ),
    Mutant(
        "twin_stale_cache",
        "New keys overwrite the first ones in the buffer, and the last places hold what was in memory.",
        "torch_impl/attention.py",
        "self.key[:, :, self.length : stop] = key",
        "self.key[:, :, : key.shape[2]] = key",
    ),
    Mutant(
        "twin_cache_forgets_when_it_grows",
        "A full buffer is exchanged for a larger one, but the old keys and values are not copied.",
        "torch_impl/attention.py",
        "buffer[:, :, : self.length] = old[:, :, : self.length]",
        "buffer[:, :, : self.length] = 0",
    ),
    Mutant(
        "twin_linear_state_not_carried",
        "Linear attention starts from nothing at every new token.",
        "torch_impl/attention.py",
        "past.state, past.length = state, past.length + key.shape[2]",
        "past.length = past.length + key.shape[2]",
    ),
)

FLASH_ATTENTION = (
    Mutant(
        "online_softmax_denominator_not_rescaled",
        "A tile with a larger maximum does not shrink the sum so far.",
        "reference_numpy/flash_attention.py",
        "total = total * shrink + exponential.sum(axis=-1, keepdims=True)",
        "total = total + exponential.sum(axis=-1, keepdims=True)",
    ),
    Mutant(
        "online_softmax_values_not_rescaled",
        "A tile with a larger maximum does not shrink the values summed so far.",
        "reference_numpy/flash_attention.py",
        "total_value = total_value * shrink + exponential @ value[:, :, columns]",
        "total_value = total_value + exponential @ value[:, :, columns]",
    ),
    Mutant(
        "log_sum_exp_without_the_maximum",
        "The maximum is not added back to the log of the denominator, so the backward computes other weights.",
        "reference_numpy/flash_attention.py",
        "log_total[:, :, rows] = np.where(empty, np.inf, largest + np.log(safe_total))",
        "log_total[:, :, rows] = np.where(empty, np.inf, np.log(safe_total))",
    ),
    Mutant(
        "flash_empty_row_is_nan",
        "While a query has seen nothing, its maximum is -inf, and -inf - (-inf) is NaN.",
        "reference_numpy/flash_attention.py",
        "shift = np.where(new_largest == -np.inf, 0, new_largest)",
        "shift = new_largest",
    ),
    Mutant(
        "flash_gradient_without_the_row_sums",
        "The term d_output . output of softmax's gradient is missing.",
        "reference_numpy/flash_attention.py",
        "d_scores = p * (d_output_tile @ value_tile.mT - row_sums[:, :, rows])",
        "d_scores = p * (d_output_tile @ value_tile.mT)",
    ),
    Mutant(
        "flash_key_gradient_overwritten",
        "Each tile of queries replaces the gradient of the keys instead of adding to it.",
        "reference_numpy/flash_attention.py",
        "d_key[:, :, columns] += d_scores.mT @ (query_tile * scale)",
        "d_key[:, :, columns] = d_scores.mT @ (query_tile * scale)",
    ),
    Mutant(
        "flash_skips_tiles_on_the_diagonal",
        "A tile is skipped as soon as it is too late for the first query of the tile, though later ones may see it.",
        "reference_numpy/flash_attention.py",
        "too_late = options.causal and columns.start > last",
        "too_late = options.causal and columns.start > first",
    ),
    Mutant(
        "flash_tiles_aligned_at_the_start",
        "With more keys than queries, tiles are skipped as if the first query stood at the first key.",
        "reference_numpy/flash_attention.py",
        "first, last = rows.start + S - T, rows.stop - 1 + S - T",
        "first, last = rows.start, rows.stop - 1",
    ),
    Mutant(
        "flash_positions_restart_in_every_tile",
        "Masks and penalties of each tile count positions from 0.",
        "reference_numpy/flash_attention.py",
        "row_positions, column_positions = np.arange(S - T, S)[rows], np.arange(S)[columns]",
        "row_positions, column_positions = np.arange(rows.stop - rows.start), np.arange(columns.stop - columns.start)",
    ),
    Mutant(
        "twin_fused_scores_not_scaled",
        "The fused kernel is told not to divide by sqrt(K).",
        "torch_impl/flash_attention.py",
        "attn_mask=bias, is_causal=causal)",
        "attn_mask=bias, is_causal=causal, scale=1.0)",
    ),
    Mutant(
        "twin_causality_forgotten",
        "The fused kernel is not told to be causal: every token sees the one that it has to predict.",
        "torch_impl/flash_attention.py",
        "return _fused(query, key, value, None, causal)",
        "return _fused(query, key, value, None, False)",
    ),
    Mutant(
        "twin_causal_mask_aligned_at_the_start",
        "torch's own causal mask is used for a few queries after many keys: it lets the newest token see only the oldest.",
        "torch_impl/flash_attention.py",
        "if mask is None and window is None and slopes is None and (not causal or T == S):",
        "if mask is None and window is None and slopes is None:",
    ),
    Mutant(
        "twin_padding_not_masked",
        "The mask is computed and never handed to the kernel.",
        "torch_impl/flash_attention.py",
        "bias = allowed\n",
        "bias = None\n",
    ),
    Mutant(
        "twin_masked_bias_is_zero",
        "With ALiBi, masked pairs get a penalty of 0 instead of -inf: they are the most attractive of all.",
        "torch_impl/flash_attention.py",
        "bias = torch.where(allowed, bias, -torch.inf)",
        "bias = torch.where(allowed, bias, 0)",
    ),
    Mutant(
        "twin_empty_row_is_an_average",
        "A query that may attend to nothing gets the mean of all values, padding included.",
        "torch_impl/flash_attention.py",
        "return output if filled is None else torch.where(filled, output, 0)",
        "return output",
    ),
    Mutant(
        "twin_garbage_in_padding_leaks",
        "A weight of 0 times a NaN in a masked value is NaN.",
        "torch_impl/flash_attention.py",
        "key, value = only_seen(key, seen), only_seen(value, seen)",
        "key = only_seen(key, seen)",
    ),
)

LINEAR_ATTENTION = (
    Mutant(
        "linear_attention_not_normalised",
        "The sum of the values is not divided by the sum of the weights.",
        "reference_numpy/linear_attention.py",
        "output = sums[..., :-1] / normalizer",
        "output = sums[..., :-1]",
    ),
    Mutant(
        "linear_attention_normaliser_has_no_gradient",
        "The denominator is differentiated as if it were a constant.",
        "reference_numpy/linear_attention.py",
        "d_u = np.concatenate((d_n, -(d_n * cache.output).sum(axis=-1, keepdims=True)), axis=-1)",
        "d_u = np.concatenate((d_n, np.zeros_like(d_n[..., :1])), axis=-1)",
    ),
    Mutant(
        "linear_attention_key_gradient_forward_in_time",
        "The gradient of a key sums over earlier queries instead of later ones.",
        "reference_numpy/linear_attention.py",
        "d_b, _ = _backward_in_time(product, w, d_u, a)",
        "d_b, _ = product(w, d_u, a)",
    ),
    Mutant(
        "linear_attention_value_gradient_forward_in_time",
        "The gradient of a value sums over earlier queries instead of later ones.",
        "reference_numpy/linear_attention.py",
        "d_w, _ = _backward_in_time(product, b, a, d_u)",
        "d_w, _ = product(b, a, d_u)",
    ),
    Mutant(
        "linear_attention_forgets_earlier_tiles",
        "The state is replaced by each tile's sum instead of growing by it.",
        "reference_numpy/linear_attention.py",
        "state = state + b_tile.mT @ w_tile",
        "state = b_tile.mT @ w_tile",
    ),
    Mutant(
        "linear_attention_sees_the_rest_of_its_tile",
        "The triangle inside a tile is missing: tokens see the future up to the tile's end.",
        "reference_numpy/linear_attention.py",
        "pairs = np.tril(a_tile @ b_tile.mT)",
        "pairs = a_tile @ b_tile.mT",
    ),
    Mutant(
        "linear_attention_feature_gradient_of_relu",
        "Below zero the feature map's derivative is taken as 0 instead of exp(x).",
        "reference_numpy/linear_attention.py",
        "d_query = d_a * np.minimum(a, 1)",
        "d_query = d_a * np.where(a > 1, 1, 0)",
    ),
    Mutant(
        "linear_attention_features_without_the_one",
        "elu(x) + 1 loses its 1 above zero: the feature map jumps at 0.",
        "reference_numpy/linear_attention.py",
        "return np.where(positive, x + 1, np.exp(np.where(positive, 0, x)))",
        "return np.where(positive, x, np.exp(np.where(positive, 0, x)))",
    ),
    Mutant(
        "linear_attention_padding_in_the_normaliser",
        "Padded keys are set to 0, but the feature of 0 is 1: they still count in the denominator.",
        "reference_numpy/linear_attention.py",
        "query_features, key_features = _features(query), only_seen(_features(key), seen)",
        "query_features, key_features = _features(query), _features(key)",
    ),
    Mutant(
        "twin_linear_attention_padding_in_the_normaliser",
        "Padded keys are set to 0, but the feature of 0 is 1: they still count in the denominator.",
        "torch_impl/linear_attention.py",
        "query_features, key_features = _features(query), only_seen(_features(key), seen)",
        "query_features, key_features = _features(query), _features(key)",
    ),
    Mutant(
        "twin_linear_attention_forgets_earlier_tiles",
        "The state is replaced by each tile's sum instead of growing by it.",
        "torch_impl/linear_attention.py",
        "state = state + b_tile.mT @ w_tile",
        "state = b_tile.mT @ w_tile",
    ),
    Mutant(
        "twin_linear_attention_sees_the_rest_of_its_tile",
        "The triangle inside a tile is missing: tokens see the future up to the tile's end.",
        "torch_impl/linear_attention.py",
        "pairs = (a_tile @ b_tile.mT).tril()",
        "pairs = a_tile @ b_tile.mT",
    ),
)

FEED_FORWARD = (
    Mutant(
        "swiglu_gate_multiplies_itself",
        "The activated gate multiplies the raw gate instead of the up projection.",
        "reference_numpy/feed_forward.py",
        "inner = activated * up",
        "inner = activated * gate",
    ),
    Mutant(
        "swiglu_gradient_of_one_path",
        "The input fed two projections, but only one of the two gradients is returned.",
        "reference_numpy/feed_forward.py",
        "return d_x_up + d_x_gate, d_parameters | d_up_parameters | d_gate_parameters",
        "return d_x_up, d_parameters | d_up_parameters | d_gate_parameters",
    ),
    Mutant(
        "swiglu_product_rule_forgotten",
        "The gate's gradient is not multiplied by the other factor.",
        "reference_numpy/feed_forward.py",
        "d_gate = activate_backward(d_inner * up, cache.activation)",
        "d_gate = activate_backward(d_inner, cache.activation)",
    ),
    Mutant(
        "activations_confused",
        "The configuration says gelu and gets the tanh approximation.",
        "reference_numpy/feed_forward.py",
        '"gelu": (activation.gelu_forward, activation.gelu_backward),',
        '"gelu": (activation.gelu_tanh_forward, activation.gelu_tanh_backward),',
    ),
    Mutant(
        "twin_no_nonlinearity",
        "The activation is forgotten: two linear maps in a row are one.",
        "torch_impl/feed_forward.py",
        "return self.down(self.activate(self.up(x)))",
        "return self.down(self.up(x))",
    ),
    Mutant(
        "twin_swiglu_gate_and_up_swapped",
        "The activation is applied to the up projection instead of the gate.",
        "torch_impl/feed_forward.py",
        "return self.down(self.activate(self.gate(x)) * self.up(x))",
        "return self.down(self.activate(self.up(x)) * self.gate(x))",
    ),
)

BLOCK = (
    Mutant(
        "no_residual",
        "The sub-layer's output replaces the stream instead of adding to it: deep models do not learn.",
        "reference_numpy/block.py",
        "return x + update, ResidualCache(norm_cache, sublayer_cache, dropout_cache)",
        "return update, ResidualCache(norm_cache, sublayer_cache, dropout_cache)",
    ),
    Mutant(
        "norm_skipped",
        "The norm is computed, and the sub-layer is given the stream as it was.",
        "reference_numpy/block.py",
        "update, sublayer_cache = sublayer(normed)",
        "update, sublayer_cache = sublayer(x)",
    ),
    Mutant(
        "pre_and_post_norm_confused",
        "The configuration's pre gives post-norm, and the other way round.",
        "reference_numpy/block.py",
        'RESIDUAL = {"pre": (pre_norm_forward, pre_norm_backward), "post": (post_norm_forward, post_norm_backward)}',
        'RESIDUAL = {"post": (pre_norm_forward, pre_norm_backward), "pre": (post_norm_forward, post_norm_backward)}',
    ),
    Mutant(
        "residual_gradient_missing",
        "The gradient goes through the sub-layer alone; the straight path, which keeps deep models alive, is lost.",
        "reference_numpy/block.py",
        "return d_y + d_x, d_norm, d_sublayer",
        "return d_x, d_norm, d_sublayer",
    ),
    Mutant(
        "post_norm_gradient_around_the_norm",
        "In post-norm the straight path is taken before the norm's backward instead of after it.",
        "reference_numpy/block.py",
        "return d_sum + d_x, d_norm, d_sublayer",
        "return d_y + d_x, d_norm, d_sublayer",
    ),
    Mutant(
        "self_attention_gradient_of_the_queries_alone",
        "In self-attention the input is query, key and value; only the first of the three gradients is returned.",
        "reference_numpy/block.py",
        "return d_x + d_memory, d_own",
        "return d_x, d_own",
    ),
    Mutant(
        "norm_epsilon_of_the_config_ignored",
        "The epsilon in the configuration does not reach LayerNorm.",
        "reference_numpy/normalization.py",
        'return layer_norm_forward(x, parameters["weight"], parameters.get("bias"), config.norm_epsilon)',
        'return layer_norm_forward(x, parameters["weight"], parameters.get("bias"))',
    ),
    Mutant(
        "cached_source_dropped",
        "In decoding, cross-attention has nothing kept of the source, and falls back to the target itself.",
        "reference_numpy/block.py",
        "own_past, memory_past = (None, None) if past is None else (past.own, past.memory)",
        "own_past, memory_past = (None, None) if past is None else (past.own, None)",
    ),
    Mutant(
        "twin_no_residual",
        "The sub-layer's output replaces the stream instead of adding to it: deep models do not learn.",
        "torch_impl/block.py",
        "return x + drop(sublayer(norm(x)), self.config, generator)",
        "return drop(sublayer(norm(x)), self.config, generator)",
    ),
    Mutant(
        "twin_norm_on_the_wrong_side",
        "Pre-norm normalises what the sub-layer returns instead of what it is given.",
        "torch_impl/block.py",
        "return x + drop(sublayer(norm(x)), self.config, generator)",
        "return x + drop(norm(sublayer(x)), self.config, generator)",
    ),
    Mutant(
        "twin_post_norm_inside_the_residual",
        "Post-norm leaves the straight path out of the norm.",
        "torch_impl/block.py",
        "return norm(x + drop(sublayer(x), self.config, generator))",
        "return x + norm(drop(sublayer(x), self.config, generator))",
    ),
    Mutant(
        "twin_dropout_on_the_stream",
        "The whole stream is dropped instead of the sub-layer's update: what is lost in one block is lost for all.",
        "torch_impl/block.py",
        "return norm(x + drop(sublayer(x), self.config, generator))",
        "return norm(drop(x + sublayer(x), self.config, generator))",
    ),
    Mutant(
        "twin_source_padding_not_masked",
        "The decoder attends to the padding of the source.",
        "torch_impl/block.py",
        "return self.cross_attention(h, memory, memory_mask, past=memory_past, keep=keep)",
        "return self.cross_attention(h, memory, None, past=memory_past, keep=keep)",
    ),
    Mutant(
        "twin_cached_source_dropped",
        "In decoding, cross-attention has nothing kept of the source, and falls back to the target itself.",
        "torch_impl/block.py",
        "own_past, memory_past = (None, None) if past is None else (past.own, past.memory)",
        "own_past, memory_past = (None, None) if past is None else (past.own, None)",
    ),
)

MODEL = (
    Mutant(
        "tied_gradient_overwritten",
        "The table is embedding and head at once; the head's gradient replaces the embedding's instead of adding to it.",
        "reference_numpy/model.py",
        'return _add(d_parameters, {"token_embedding.weight" if config.tied else "head.weight": d_head})',
        'return d_parameters | {"token_embedding.weight" if config.tied else "head.weight": d_head}',
    ),
    Mutant(
        "encoder_gradient_of_the_table_lost",
        "Encoder and decoder share their tables, but only the decoder's gradient arrives.",
        "reference_numpy/model.py",
        "d_parameters = _add(d_parameters, d_encoder)",
        "d_parameters = d_encoder | d_parameters",
    ),
    Mutant(
        "memory_gradient_of_one_block",
        "Every block of the decoder reads the encoder, but only the first one's gradient is passed back.",
        "reference_numpy/model.py",
        "d_memory = d_block_memory if d_memory is None else d_memory + d_block_memory",
        "d_memory = d_block_memory",
    ),
    Mutant(
        "final_norm_skipped",
        "Pre-norm needs a norm after the last block; here its result is thrown away.",
        "reference_numpy/model.py",
        'x, final_norm = norm_forward(x, scope(parameters, f"{prefix}final_norm"), config)',
        '_, final_norm = norm_forward(x, scope(parameters, f"{prefix}final_norm"), config)',
    ),
    Mutant(
        "encoder_is_causal",
        "The encoder may look back only, although the whole source is there to be read.",
        "reference_numpy/model.py",
        'source, parameters, "encoder.", config, _over_keys(source_padding), False, None, None, generator, None',
        'source, parameters, "encoder.", config, _over_keys(source_padding), True, None, None, generator, None',
    ),
    Mutant(
        "decoder_of_two_stacks_sees_the_future",
        "Only decoder-only models are causal: the decoder of an encoder-decoder is trained with the answer in view.",
        "reference_numpy/model.py",
        'prefix, causal = ("decoder." if config.kind == "encoder_decoder" else ""), config.kind != "encoder"',
        'prefix, causal = ("decoder." if config.kind == "encoder_decoder" else ""), config.kind == "decoder"',
    ),
    Mutant(
        "twin_tied_head_has_no_gradient",
        "The head uses the embedding's values, but its gradient never reaches the table.",
        "torch_impl/model.py",
        "return linear(x, self.token_embedding.weight) if self.head is None else self.head(x)",
        "return linear(x, self.token_embedding.weight.detach()) if self.head is None else self.head(x)",
    ),
    Mutant(
        "twin_final_norm_skipped",
        "Pre-norm needs a norm after the last block; here it is never called.",
        "torch_impl/model.py",
        "return x if self.final_norm is None else self.final_norm(x)",
        "return x",
    ),
    Mutant(
        "twin_encoder_sees_padding",
        "The encoder's own attention is not told which source tokens are padding.",
        "torch_impl/model.py",
        "memory = self.encoder._run(embedded, _over_keys(source_padding), False,",
        "memory = self.encoder._run(embedded, None, False,",
    ),
    Mutant(
        "twin_encoder_is_causal",
        "The encoder may look back only, although the whole source is there to be read.",
        "torch_impl/model.py",
        "memory = self.encoder._run(embedded, _over_keys(source_padding), False,",
        "memory = self.encoder._run(embedded, _over_keys(source_padding), True,",
    ),
    Mutant(
        "twin_decoder_of_two_stacks_sees_the_future",
        "Only decoder-only models are causal: the decoder of an encoder-decoder is trained with the answer in view.",
        "torch_impl/model.py",
        'causal, memory_mask = config.kind != "encoder", _over_keys(source_padding)',
        'causal, memory_mask = config.kind == "decoder", _over_keys(source_padding)',
    ),
    Mutant(
        "twin_padding_ignored",
        "The padding of the batch is accepted and not used.",
        "torch_impl/model.py",
        "x = stack._run(x, _over_keys(padding), causal,",
        "x = stack._run(x, None, causal,",
    ),
)

PARAMETERS = (
    Mutant(
        "twin_snapshot_is_not_a_copy",
        "What is read out of the model shares its memory, and changes with the next step of training.",
        "torch_impl/parameters.py",
        "return tensor.numpy().copy()",
        "return tensor.numpy()",
    ),
    Mutant(
        "twin_starts_with_equal_deviations",
        "All matrices of the twin start alike: the projections into the stream are not scaled down.",
        "torch_impl/parameters.py",
        "parameter.normal_(std=deviation(config, name), generator=generator)",
        "parameter.normal_(std=config.initial_deviation, generator=generator)",
    ),
    Mutant(
        "twin_gains_start_at_zero",
        "The gains of the twin's norms start at 0: every sub-layer is silent, and nothing learns.",
        "torch_impl/parameters.py",
        'parameter.fill_(0 if name.endswith("bias") else 1)',
        "parameter.fill_(0)",
    ),
    Mutant(
        "residual_projections_not_scaled_down",
        "The projections into the stream start as large as all others, so its variance grows with depth.",
        "reference_numpy/parameters.py",
        "return config.initial_deviation / math.sqrt(sublayers * config.layers)",
        "return config.initial_deviation",
    ),
    Mutant(
        "cross_attention_not_counted_as_a_sub_layer",
        "A decoder block with cross-attention writes into the stream three times, but is scaled as if twice.",
        "reference_numpy/parameters.py",
        'sublayers = 3 if name.startswith("decoder.") else 2',
        "sublayers = 2",
    ),
    Mutant(
        "norm_gains_start_at_zero",
        "All vectors start at 0, gains included: every norm returns 0, and nothing is learned.",
        "reference_numpy/parameters.py",
        'value = np.zeros(shape) if name.endswith("bias") else np.ones(shape)',
        "value = np.zeros(shape)",
    ),
    Mutant(
        "scaled_embedding_starts_too_large",
        "The embedding that is multiplied by sqrt(D) starts at sqrt(D) instead of 1/sqrt(D).",
        "reference_numpy/parameters.py",
        "return config.width**-0.5",
        "return config.width**0.5",
    ),
    Mutant(
        "each_precision_starts_elsewhere",
        "Initial values are drawn in the precision that is asked for, so float32 and float64 start from different models.",
        "reference_numpy/parameters.py",
        "value = generator.standard_normal(shape) * deviation(config, name)",
        "value = generator.standard_normal(shape, np.dtype(dtype)) * deviation(config, name)",
    ),
)

LOSS = (
    Mutant(
        "ignored_targets_in_the_mean",
        "The loss is divided by all targets, padding included: it looks lower the more padding there is.",
        "reference_numpy/loss.py",
        "count = int(counted.sum()) if count is None else count",
        "count = targets.size if count is None else count",
    ),
    Mutant(
        "ignored_targets_have_a_loss",
        "Padding is scored as if token 0 were the right answer.",
        "reference_numpy/loss.py",
        "loss = np.where(counted, nats, 0).sum() / divisor",
        "loss = nats.sum() / divisor",
    ),
    Mutant(
        "label_smoothing_over_padding",
        "Once labels are smoothed, padding is no longer ignored.",
        "reference_numpy/loss.py",
        "loss = np.where(counted, nats, 0).sum() / divisor",
        "loss = np.where(counted | (label_smoothing > 0), nats, 0).sum() / divisor",
    ),
    Mutant(
        "ignored_targets_have_a_gradient",
        "Padding does not count in the loss, but it does in the gradient.",
        "reference_numpy/loss.py",
        "return np.where((targets != IGNORE)[..., None], d_logits, 0)",
        "return d_logits",
    ),
    Mutant(
        "label_smoothing_over_the_others",
        "The smoothed mass is divided by V - 1, as if the right symbol got none of it.",
        "reference_numpy/loss.py",
        "label_smoothing * (log_total - shifted.mean(axis=-1))",
        "label_smoothing * (log_total - shifted.sum(axis=-1) / max(vocabulary - 1, 1))",
    ),
    Mutant(
        "label_smoothing_missing_from_the_gradient",
        "The loss is smoothed, its gradient is not.",
        "reference_numpy/loss.py",
        "probabilities - (1 - label_smoothing), probabilities) - label_smoothing / vocabulary",
        "probabilities - 1, probabilities)",
    ),
    Mutant(
        "loss_gradient_not_averaged",
        "The loss is a mean, its gradient is that of the sum: the step grows with the batch.",
        "reference_numpy/loss.py",
        "d_logits = difference * (d_loss / divisor)",
        "d_logits = difference * d_loss",
    ),
    Mutant(
        "loss_overflows",
        "The largest logit is not subtracted first: exp of a large logit is inf.",
        "reference_numpy/loss.py",
        "shifted = logits - logits.max(axis=-1, keepdims=True)",
        "shifted = logits - 0 * logits.max(axis=-1, keepdims=True)",
    ),
    Mutant(
        "loss_in_bits",
        "The logarithm is the binary one, so the loss is bits in one place and nats in another.",
        "reference_numpy/loss.py",
        "log_total = np.log(total)[..., 0]",
        "log_total = np.log2(total)[..., 0]",
    ),
    Mutant(
        "twin_ignored_targets_in_the_mean",
        "The loss is divided by all targets, padding included: it looks lower the more padding there is.",
        "torch_impl/loss.py",
        "(targets != IGNORE).sum().clamp(min=1)",
        "targets.numel()",
    ),
    Mutant(
        "twin_loss_is_nan_without_targets",
        "A batch in which nothing counts divides 0 by 0, as torch's own mean does.",
        "torch_impl/loss.py",
        "(targets != IGNORE).sum().clamp(min=1)",
        "(targets != IGNORE).sum()",
    ),
    Mutant(
        "twin_label_smoothing_forgotten",
        "The option is accepted and not used.",
        "torch_impl/loss.py",
        "label_smoothing=label_smoothing,",
        "label_smoothing=0.0,",
    ),
)

OPTIMIZER = (
    Mutant(
        "adamw_without_bias_correction",
        "The means start at 0, and nothing makes up for it: the first steps have the wrong size.",
        "reference_numpy/optimizer.py",
        "correction1, correction2 = 1 - beta1**step, 1 - beta2**step",
        "correction1, correction2 = 1.0, 1.0",
    ),
    Mutant(
        "adamw_second_moment_uses_beta1",
        "The mean of the squares is averaged over ten steps instead of a thousand.",
        "reference_numpy/optimizer.py",
        "v = second[name] = beta2 * state.second[name] + (1 - beta2) * (g * g)",
        "v = second[name] = beta1 * state.second[name] + (1 - beta1) * (g * g)",
    ),
    Mutant(
        "adamw_epsilon_inside_the_root",
        "Epsilon is added to the square instead of its root.",
        "reference_numpy/optimizer.py",
        "(np.sqrt(v) / math.sqrt(correction2) + epsilon)",
        "np.sqrt(v / correction2 + epsilon)",
    ),
    Mutant(
        "adamw_decay_on_norms",
        "Gains and biases decay, too: the norms are pulled towards 0.",
        "reference_numpy/optimizer.py",
        "return weight.ndim >= 2",
        "return weight.ndim >= 1",
    ),
    Mutant(
        "adamw_decay_coupled",
        "The decay is also added to the gradient and so enters the means: L2 regularisation, which Adam then divides away.",
        "reference_numpy/optimizer.py",
        "g = gradients[name]\n        m = first[name]",
        "g = gradients[name] + weight_decay * w\n        m = first[name]",
    ),
    Mutant(
        "adamw_decay_without_the_learning_rate",
        "The decay is not multiplied by the learning rate: a tenth of every weight is lost at each step.",
        "reference_numpy/optimizer.py",
        "w = w * (1 - learning_rate * weight_decay)\n",
        "w = w * (1 - weight_decay)\n",
    ),
    Mutant(
        "clipping_by_each_tensors_norm",
        "Each gradient is scaled by its own norm: the direction of the step changes.",
        "reference_numpy/optimizer.py",
        "return {name: g * (maximum / norm) for name, g in gradients.items()}, norm",
        "return {name: g * (maximum / math.sqrt(float((g * g).sum()))) for name, g in gradients.items()}, norm",
    ),
    Mutant(
        "clipping_scales_small_gradients_up",
        "Every gradient gets the maximal norm, also those that were below it.",
        "reference_numpy/optimizer.py",
        "if norm <= maximum:",
        "if norm == 0:",
    ),
    Mutant(
        "muon_without_nesterov",
        "The update is the momentum itself, without the look ahead.",
        "reference_numpy/optimizer.py",
        "update = newton_schulz(g + momentum * m)",
        "update = newton_schulz(m)",
    ),
    Mutant(
        "muon_scale_inverted",
        "The step of a tall matrix is not enlarged, that of a wide one is.",
        "reference_numpy/optimizer.py",
        "scale = math.sqrt(max(1.0, w.shape[0] / w.shape[1]))",
        "scale = math.sqrt(max(1.0, w.shape[1] / w.shape[0]))",
    ),
    Mutant(
        "muon_momentum_damped",
        "The momentum is an average, as Adam's is, instead of a sum.",
        "reference_numpy/optimizer.py",
        "m = hidden_momentum[name] = momentum * state.momentum[name] + g",
        "m = hidden_momentum[name] = momentum * state.momentum[name] + (1 - momentum) * g",
    ),
    Mutant(
        "muon_takes_the_embedding",
        "Every matrix is orthogonalised, the embedding and the head included.",
        "reference_numpy/optimizer.py",
        'return weight.ndim == 2 and "blocks." in name',
        "return weight.ndim == 2",
    ),
    Mutant(
        "newton_schulz_coefficient",
        "A digit of the polynomial's last coefficient is lost.",
        "reference_numpy/optimizer.py",
        "NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)",
        "NEWTON_SCHULZ = (3.4445, -4.7750, 2.315)",
    ),
    Mutant(
        "twin_decay_on_norms",
        "Gains and biases decay, too: the norms are pulled towards 0.",
        "torch_impl/optimizer.py",
        '{"params": [p for p in everything if p.ndim < 2], "weight_decay": 0.0},',
        '{"params": [p for p in everything if p.ndim < 2], "weight_decay": weight_decay},',
    ),
    Mutant(
        "twin_betas_swapped",
        "The two decay rates of the means are passed in the wrong order.",
        "torch_impl/optimizer.py",
        "betas=(beta1, beta2),",
        "betas=(beta2, beta1),",
    ),
    Mutant(
        "twin_clipping_adds_an_epsilon",
        "1e-6 is added to the norm, as torch's function does: the twins take slightly different steps.",
        "torch_impl/optimizer.py",
        "1.0, maximum / norm)",
        "1.0, maximum / (norm + 1e-6))",
    ),
    Mutant(
        "twin_clipping_scales_small_gradients_up",
        "Every gradient gets the maximal norm, also those that were below it.",
        "torch_impl/optimizer.py",
        "torch.where(norm <= maximum, 1.0, maximum / norm)",
        "maximum / norm",
    ),
    Mutant(
        "twin_muon_without_nesterov",
        "The update is the momentum itself, without the look ahead.",
        "torch_impl/optimizer.py",
        "torch.stack([whole(matrix) for matrix in nesterov])",
        "torch.stack([whole(matrix) for matrix in momenta])",
    ),
    Mutant(
        "twin_newton_schulz_coefficients_swapped",
        "The two coefficients of the polynomial change places.",
        "torch_impl/optimizer.py",
        "beta=b, alpha=c",
        "beta=c, alpha=b",
    ),
    Mutant(
        "twin_newton_schulz_one_norm_for_all",
        "Matrices that are orthogonalised together are divided by their joint norm instead of each by its own.",
        "torch_impl/optimizer.py",
        "norm = x.square().sum(dim=(-2, -1), keepdim=True).sqrt()",
        "norm = x.square().sum().sqrt()",
    ),
    Mutant(
        "twin_moments_swapped_on_resuming",
        "A resumed run takes the mean of the gradient for the mean of its square.",
        "torch_impl/optimizer.py",
        '"exp_avg_sq": as_tensor(second[name], parameter),',
        '"exp_avg_sq": as_tensor(first[name], parameter),',
    ),
    Mutant(
        "twin_steps_forgotten_on_resuming",
        "A resumed run corrects the bias of the means as if it took its first step.",
        "torch_impl/optimizer.py",
        '"step": torch.tensor(float(step), device=parameter.device),',
        '"step": torch.tensor(0.0, device=parameter.device),',
    ),
)

DECODE = (
    Mutant(
        "logits_of_the_first_token",
        "The next token is predicted from the first position of the prompt instead of the last.",
        "reference_numpy/decode.py",
        "return logits[:, -1]\n",
        "return logits[:, 0]\n",
    ),
    Mutant(
        "temperature_multiplies",
        "The logits are multiplied by the temperature: a high one makes the text more certain.",
        "reference_numpy/decode.py",
        "scaled = (scaled - scaled.max(axis=-1, keepdims=True)) / temperature",
        "scaled = (scaled - scaled.max(axis=-1, keepdims=True)) * temperature",
    ),
    Mutant(
        "top_k_keeps_one_more",
        "Off by one: k + 1 tokens can be drawn.",
        "reference_numpy/decode.py",
        "p[:, top_k:] = 0",
        "p[:, top_k + 1 :] = 0",
    ),
    Mutant(
        "top_p_drops_the_token_that_crosses",
        "Off by one: the token with which the mass reaches p is cut, and with it sometimes the only one.",
        "reference_numpy/decode.py",
        "before = np.concatenate((np.zeros_like(p[:, :1]), np.cumsum(p, axis=-1)[:, :-1]), axis=-1)",
        "before = np.cumsum(p, axis=-1)",
    ),
    Mutant(
        "top_p_keeps_one_more",
        "Off by one: the token after the one with which the mass reaches p can be drawn, too.",
        "reference_numpy/decode.py",
        "p[before >= top_p] = 0",
        "p[before - np.roll(p, 1, axis=-1) * (before > 0) >= top_p] = 0",
    ),
    Mutant(
        "top_p_of_weights_that_do_not_sum_to_one",
        "The mass is compared with p before it is normalised, so that too few tokens remain.",
        "reference_numpy/decode.py",
        "p /= p.sum(axis=-1, keepdims=True)",
        "p = p * 1.0",
    ),
    Mutant(
        "cached_values_not_reordered",
        "Beam search picks rows of the batch, but only the keys follow.",
        "reference_numpy/attention.py",
        'for name in ("key", "value", "state"):',
        'for name in ("key", "state"):',
    ),
    Mutant(
        "source_padding_not_reordered",
        "When finished rows leave the batch, the source's padding stays behind.",
        "reference_numpy/decode.py",
        "else self._source_padding[rows]",
        "else self._source_padding[: len(rows)]",
    ),
    Mutant(
        "length_penalty_without_the_five",
        "The penalty is length^alpha, not ((5 + length) / 6)^alpha: long sequences win too easily.",
        "reference_numpy/decode.py",
        "return ((5 + length) / 6) ** alpha",
        "return length**alpha",
    ),
    Mutant(
        "length_penalty_forgotten",
        "Finished sequences are compared by their log probability: the shortest wins.",
        "reference_numpy/decode.py",
        "finished = Hypothesis(prefixes[row][beam], total / length_penalty(length, alpha))",
        "finished = Hypothesis(prefixes[row][beam], total)",
    ),
    Mutant(
        "beam_search_stops_too_early",
        "A row is given up with the penalty of the present length, although it grows with each token.",
        "reference_numpy/decode.py",
        "if scores[row, 0] / length_penalty(maximum, alpha) > best[row].score:",
        "if scores[row, 0] / length_penalty(length, alpha) > best[row].score:",
    ),
    Mutant(
        "beams_not_reordered",
        "Prefixes change places in the beam, but the decoder goes on with the old rows.",
        "reference_numpy/decode.py",
        "decoder.select(np.array(parents))",
        "decoder.select(np.sort(parents))",
    ),
    Mutant(
        "beams_all_start_alike",
        "All beams of a row branch from the start, and hold the same prefixes for ever: a beam of 4 is a beam of 1.",
        "reference_numpy/decode.py",
        "scores = np.full((batch, beams), -np.inf)",
        "scores = np.zeros((batch, beams))",
    ),
    Mutant(
        "twin_logits_of_the_first_token",
        "The next token is predicted from the first position of the prompt instead of the last.",
        "torch_impl/decode.py",
        "return as_numpy(logits[:, -1])",
        "return as_numpy(logits[:, 0])",
    ),
    Mutant(
        "twin_cache_not_reordered",
        "The right number of rows is kept, but not in the order in which they were chosen.",
        "torch_impl/decode.py",
        "past.own.select(index)",
        "past.own.select(index.sort().values)",
    ),
    Mutant(
        "twin_cached_source_not_reordered",
        "When finished rows leave the batch, the keys of their sources stay behind.",
        "torch_impl/decode.py",
        "past.memory.select(index)",
        "past.memory.select(torch.arange(len(index)))",
    ),
    Mutant(
        "twin_second_derivative_in_silence",
        "A backward pass that has no derivative of its own passes for a constant: Hessians come out wrong.",
        "torch_impl/derivative.py",
        "if torch.is_grad_enabled() and not torch.compiler.is_compiling():",
        "if not torch.is_grad_enabled() and torch.compiler.is_compiling():",
    ),
    Mutant(
        "twin_packed_in_the_wrong_order",
        "One product gives queries, keys and values, but the weights lie in another order than its parts are taken.",
        "torch_impl/decode.py",
        "PackedLinear(module.projections, bfloat16, compiled)",
        "PackedLinear((module.key, module.query, module.value), bfloat16, compiled)",
    ),
    Mutant(
        "twin_bfloat16_forgotten",
        "Asked for bfloat16, decoding packs single layers in float32: nothing is wrong but the time.",
        "torch_impl/decode.py",
        "PackedLinear((child,), bfloat16, compiled)",
        "PackedLinear((child,), False, compiled)",
    ),
    Mutant(
        "twin_row_summed_in_its_own_format",
        "For the compiler a product with one row is a sum, in bfloat16 where its factors are.",
        "torch_impl/linear.py",
        "exact = torch.promote_types(x.dtype, torch.float32)",
        "exact = x.dtype",
    ),
    Mutant(
        "twin_row_without_bias",
        "For the compiler a product with one row is a sum, without the bias.",
        "torch_impl/linear.py",
        "        y = y + bias\n    return y.to(x.dtype)",
        "        y = y + 0 * bias\n    return y.to(x.dtype)",
    ),
    Mutant(
        "twin_packed_without_bias",
        "The weights are packed, the biases are not.",
        "torch_impl/linear.py",
        "bias = _concatenated([layer.bias for layer in layers if layer.bias is not None])",
        "bias = None",
    ),
)

MUTANTS: tuple[Mutant, ...] = (
    *ACTIVATION,
    *LINEAR,
    *SOFTMAX,
    *NORMALIZATION,
    *DROPOUT,
    *EMBEDDING,
    *POSITION,
    *MASK,
    *ATTENTION,
    *FLASH_ATTENTION,
    *LINEAR_ATTENTION,
    *FEED_FORWARD,
    *BLOCK,
    *MODEL,
    *PARAMETERS,
    *LOSS,
    *OPTIMIZER,
    *DECODE,
)
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


@dataclass(frozen=True)
class Twice:
    """The same mistake in both twins, forward and backward: they agree with each other, so only an outsider can notice."""

    mistake: str
    parts: tuple[str, ...]
    """Names of faults, made together."""
    reason: str = ""
    """Why no test can notice it, if none can."""


TWICE = {
    "both_scores_not_scaled": Twice(
        "Neither twin divides the scores by sqrt(K).",
        (
            *("scores_not_scaled", "query_gradient_without_the_scale", "key_gradient_without_the_scale"),
            *("twin_scores_not_scaled", "twin_fused_scores_not_scaled"),
        ),
    ),
    "both_heads_split_along_the_wrong_axes": Twice(
        "Both twins reshape the channels straight to (B, H, T, K).",
        ("heads_split_along_the_wrong_axes", "twin_heads_split_along_the_wrong_axes"),
    ),
    "both_grouped_heads_tiled": Twice(
        "Both twins lay key-value heads out 0 1 0 1 instead of 0 0 1 1.",
        ("grouped_heads_tiled", "grouped_gradient_of_the_wrong_group", "twin_grouped_heads_tiled"),
    ),
    "both_causal_masks_see_the_next_token": Twice(
        "Both twins let a token look at the one that it has to predict.",
        ("causal_mask_sees_the_next_token", "twin_causal_mask_sees_the_next_token"),
    ),
    "both_encoders_are_causal": Twice(
        "The encoders of both twins look back only.",
        ("encoder_is_causal", "twin_encoder_is_causal"),
    ),
    "both_decoders_of_two_stacks_see_the_future": Twice(
        "In both twins the decoder of an encoder-decoder is trained with the answer in view.",
        ("decoder_of_two_stacks_sees_the_future", "twin_decoder_of_two_stacks_sees_the_future"),
    ),
    "both_windows_off_by_one": Twice(
        "In both twins a window of 3 reaches one token further.",
        ("window_off_by_one", "twin_window_off_by_one"),
    ),
    "both_cross_attentions_windowed": Twice(
        "In both twins the window of self-attention also cuts the source.",
        ("cross_attention_windowed", "twin_cross_attention_windowed"),
    ),
    "both_turn_in_cross_attention": Twice(
        "Both twins turn queries and keys of cross-attention.",
        ("rotary_in_cross_attention", "twin_rotary_in_cross_attention"),
    ),
    "both_turn_the_other_way": Twice(
        "Both twins rotate clockwise.",
        ("rotary_turns_the_other_way", "twin_rotary_turns_the_other_way"),
    ),
    "both_softcaps_not_multiplied_back": Twice(
        "In both twins capped scores stay between -1 and 1.",
        ("softcap_not_multiplied_back", "twin_softcap_not_multiplied_back"),
    ),
    "both_without_residual": Twice(
        "In both twins a sub-layer's output replaces the stream.",
        ("no_residual", "residual_gradient_missing", "twin_no_residual"),
    ),
    "both_embeddings_not_scaled": Twice(
        "Neither twin multiplies the embedding by sqrt(D).",
        ("embedding_not_scaled", "embedding_scale_missing_from_the_gradient", "twin_embedding_not_scaled"),
    ),
    "both_dropouts_not_scaled": Twice(
        "Neither twin divides what is kept by 1 - rate.",
        ("dropout_not_scaled", "twin_dropout_not_scaled"),
    ),
    "both_linear_attentions_count_padding": Twice(
        "In both twins padded keys count in the denominator of linear attention.",
        ("linear_attention_padding_in_the_normaliser", "twin_linear_attention_padding_in_the_normaliser"),
    ),
    "both_clip_small_gradients_up": Twice(
        "Both twins give every gradient the maximal norm.",
        ("clipping_scales_small_gradients_up", "twin_clipping_scales_small_gradients_up"),
    ),
    "both_muons_without_nesterov": Twice(
        "In both twins the update is the momentum itself, without the look ahead.",
        ("muon_without_nesterov", "twin_muon_without_nesterov"),
    ),
    "both_positions_restart_in_decoding": Twice(
        "Both twins place every new token at position 0 when earlier ones come from the cache.",
        ("position_offset_missing_in_decoding", "twin_position_offset_missing_in_decoding"),
    ),
}
