"""The floating-point formats whose rounding the bounds are about."""

from typing import Any, NamedTuple

import numpy as np


class Format(NamedTuple):
    """A floating-point format: round to nearest, gradual underflow or none."""

    name: str
    precision: int  # bits of the significand, the hidden one included
    smallest_exponent: int  # the smallest subnormal is 2**smallest_exponent
    flushes: bool = False  # a result below the smallest normal number may become 0

    @property
    def unit_roundoff(self) -> float:
        """Half the distance from 1 to the next number."""
        return 2.0**-self.precision

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive number; 0 where float64 cannot hold it (longdouble)."""
        return 2.0**self.smallest_exponent if self.smallest_exponent >= -1074 else 0.0

    @property
    def underflow(self) -> float:
        """The most that one underflow loses: the smallest subnormal, or the smallest normal where it is flushed."""
        return self.smallest_subnormal * (2.0 ** (self.precision - 1) if self.flushes else 1.0)


# Where a processor has an instruction that rounds to bfloat16 (x86: VCVTNEPS2BF16), it flushes, whatever its flags say
# (Intel's manual, volume 2), and oneDNN uses it. There a sum may underflow, too; otherwise a subnormal sum is exact.
FORMATS = {
    "bfloat16": Format("bfloat16", 8, -133, flushes=True),
    "float16": Format("float16", 11, -24),
    "float32": Format("float32", 24, -149),
    "float64": Format("float64", 53, -1074),
    "longdouble": Format("longdouble", np.finfo(np.longdouble).nmant + 1, -16445),
}


def format_of(name: str | np.dtype[Any] | type) -> Format:
    """The format called `name` ("float32", np.float32, "torch.bfloat16", ...)."""
    text = name if isinstance(name, str) else np.dtype(name).name
    text = "longdouble" if text in ("float96", "float128") else text.removeprefix("torch.")
    if text not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[text]


def unit_roundoff(name: str) -> float:
    """Half the distance from 1 to the next number of the format."""
    return format_of(name).unit_roundoff


def smallest_subnormal(name: str) -> float:
    """The smallest positive number of the format."""
    return format_of(name).smallest_subnormal
