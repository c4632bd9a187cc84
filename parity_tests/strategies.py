"""What Hypothesis draws: sizes, arrays, memory layouts, masks, model configurations.

Sizes are distinct primes, so that a swapped axis cannot pass by accident, plus 0 and 1. Arrays are filled element by element
(`fill=nothing()`): by default most draws would be constant, and LayerNorm of a constant row sees nothing.
"""

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from reference_numpy.config import ModelConfig

SIZES = (0, 1, 2, 3, 5, 7, 11)
LAYOUTS = ("contiguous", "transposed", "strided", "reversed", "read-only", "broadcast")


def sizes(minimum: int = 0, maximum: int = 7) -> st.SearchStrategy[int]:
    """A length of one axis."""
    return st.sampled_from([size for size in SIZES if minimum <= size <= maximum])


def numbers(magnitude: float = 4.0, subnormal: bool = True) -> st.SearchStrategy[float]:
    """A number of ordinary size, or one that hurts: zeros of both signs, subnormals, the limits themselves."""
    if not subnormal:
        return st.floats(-magnitude, magnitude, allow_subnormal=False)
    return st.floats(-magnitude, magnitude) | st.sampled_from([0.0, -0.0, 5e-324, -1e-310, magnitude])


@st.composite
def arrays(
    draw: st.DrawFn, shape: tuple[int, ...], magnitude: float = 4.0, layout: str | None = None, subnormal: bool = True
) -> np.ndarray:
    """A float64 array of this shape, in one of LAYOUTS.

    Small arrays are drawn element by element, so that Hypothesis can shrink them to the telling few; larger ones come from a
    seeded generator, which costs one draw.
    """
    if int(np.prod(shape)) <= 24 and draw(st.booleans()):
        array = draw(hnp.arrays(np.float64, shape, elements=numbers(magnitude, subnormal), fill=st.nothing()))
    else:
        generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        array = generator.standard_normal(shape) * (magnitude / 3)
    return with_layout(array, draw(st.sampled_from(LAYOUTS)) if layout is None else layout)


def with_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """The same values in another arrangement of memory; for "broadcast" the first row for all."""
    if layout == "broadcast" and array.ndim and len(array):
        return np.broadcast_to(array[:1], array.shape)
    if layout == "transposed":
        return np.ascontiguousarray(array.T).T
    if layout == "strided":
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan) if array.ndim else array
        if array.ndim:
            wide[..., ::2] = array
            return wide[..., ::2]
    if layout == "reversed" and array.ndim:
        return np.ascontiguousarray(array[::-1])[::-1]
    if layout == "read-only":
        array = array.copy()
        array.setflags(write=False)
    return array


def integers(shape: tuple[int, ...], low: int, high: int) -> st.SearchStrategy[np.ndarray]:
    """int64 from low to high, both included."""
    return hnp.arrays(np.int64, shape, elements=st.integers(low, high), fill=st.nothing())


def booleans(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    """Masks: any pattern, among them rows of nothing but False."""
    return hnp.arrays(np.bool_, shape, elements=st.booleans(), fill=st.nothing())


@st.composite
def attention_masks(draw: st.DrawFn, B: int, H: int, T: int, S: int) -> np.ndarray | None:
    """None, padding over keys, or a mask of pairs, of any shape that broadcasts to (B, H, T, S)."""
    shape = draw(st.sampled_from([None, (), (S,), (T, S), (B, 1, 1, S), (B, H, T, S), (1, H, T, 1)]))
    return None if shape is None else draw(booleans(shape))


@st.composite
def configs(draw: st.DrawFn, /, **fixed: Any) -> ModelConfig:
    """Any valid combination of all options of ModelConfig, at a small size, with heads of 2 or 6 channels; `fixed`
    overrides."""
    heads = draw(st.sampled_from([1, 2, 3, 4]))
    attention = fixed.get("attention") or draw(st.sampled_from(["softmax", "softmax", "softmax", "linear"]))
    softmax = attention == "softmax"
    positions = ["none", "sinusoidal", "learned"] + (["rotary", "alibi"] if softmax else [])
    options: dict[str, Any] = {
        "kind": draw(st.sampled_from(["decoder", "encoder", "encoder_decoder"])),
        "vocabulary": draw(st.sampled_from([1, 2, 3, 13, 13])),  # with 1 all gradients are 0
        "context": 7,
        "width": heads * draw(st.sampled_from([2, 6])),
        "layers": draw(st.sampled_from([1, 2])),
        "heads": heads,
        "key_value_heads": draw(st.sampled_from([g for g in (None, 1, 2) if g is None or heads % g == 0])),
        "feed_forward": draw(st.sampled_from([None, 5])),
        "position": draw(st.sampled_from(positions)),
        "norm": draw(st.sampled_from(["layer", "rms"])),
        "norm_epsilon": draw(st.sampled_from([1e-5, 1e-2])),
        "norm_position": draw(st.sampled_from(["pre", "post"])),
        "activation": draw(st.sampled_from(["gelu", "gelu_tanh", "relu", "relu_squared", "swiglu"])),
        "attention": attention,
        "window": draw(st.sampled_from([None, 1, 3])) if softmax else None,
        "qk_norm": draw(st.booleans()),
        "softcap": draw(st.sampled_from([None, 1.5])) if softmax else None,
        "token_shift": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "tied": draw(st.booleans()),
        "scale_embedding": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.25])),
    }
    return ModelConfig(**(options | fixed))


def is_smooth(config: ModelConfig) -> bool:
    """Whether the model has three continuous derivatives: not with ReLU, its square, or linear attention's elu + 1."""
    return "relu" not in config.activation and config.attention == "softmax"


def random_parameters(shapes: dict[str, tuple[int, ...]], seed: int, size: float = 0.5) -> dict[str, np.ndarray]:
    """Parameters far from their initial values: gains near 1, everything else, biases too, of this size."""
    generator = np.random.default_rng(seed)
    return {
        name: (1.0 if name.endswith("norm.weight") else 0.0) + size * generator.standard_normal(shape)
        for name, shape in shapes.items()
    }


def random_padding(generator: np.random.Generator, B: int, T: int) -> np.ndarray:
    """(B, T), True for a real token: behind the sequence, in front of it, anywhere, everywhere and nowhere."""
    behind = np.arange(T) < generator.integers(0, T + 1, B)[:, None]
    anywhere = generator.random((B, T)) < 0.7
    kinds = np.stack([behind, behind[:, ::-1], anywhere])
    return kinds[generator.integers(0, 3, B), np.arange(B)]


def fewer(parts: int) -> settings:
    """For what runs whole models several times: a share of the profile's examples, at least one."""
    return settings(max_examples=max(1, settings().max_examples // parts))


seeds = st.integers(0, 2**32 - 1)
# What a composite is compared in. float64 tells most; the others, by the same rule, what training really computes in.
precisions = st.sampled_from([("float64",), ("float64", "float32"), ("float64", "bfloat16")])
