"""The attention page: one HTML file with the weights of every head, that needs no network and no server.

The page itself is page/attention.html, .css and .js; this module fills in the numbers. Weights are kept as one byte each,
255 sqrt(weight), so that a weight w comes back with an error of at most (2 sqrt(w) + 1/510) / 510, or 1/255^2: small where w
is small. Zeros stay zeros, and nothing else becomes one, since 0 stands for what is masked. All is deflated, in base64.
"""

from __future__ import annotations

import base64
import html
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.looking import Stack

PAGE = Path(__file__).with_name("page")
MOST_BYTES = 4_000_000  # of a page; what is over it costs moments first, then queries and keys


class Moment(NamedTuple):
    """The same text's attention after some step of training."""

    step: int
    loss: float | None
    """Training loss there, nats per target; None where it is not known."""
    stacks: list[Stack]
    """The same stacks at every moment."""


class QueryKey(NamedTuple):
    """Queries and keys of one stack as they meet: after norm and rotation, before the scale."""

    query: np.ndarray
    """(L, H, T, K)."""
    key: np.ndarray
    """(L, H, S, K)."""


def attention_page(
    moments: Sequence[Moment],
    title: str,
    subtitle: str,
    unit: str = "nats",
    detail: Sequence[QueryKey] | None = None,
    then: str = "softmax",
    most_bytes: int = MOST_BYTES,
) -> str:
    """The page as text, of about `most_bytes` at most.

    `moments` in order of their steps; `detail` has queries and keys of the last one, per stack, and `then` says what the
    model does between their scaled product and the weight. Where all does not fit, moments in between are left out, evenly,
    and the page says so; then `detail` is. Raises ValueError for no moment, and for one that alone is too large.
    """
    if not moments:
        raise ValueError("moments: expected at least one, got none")
    packed = [_base64(b"".join(_codes(array) for array in _arrays(moment))) for moment in moments]
    described = None if detail is None else _detail(detail, then)
    room = most_bytes - sum(len(file) for file in _files().values())
    needed = len(packed[-1]) + (0 if described is None else len(described["codes"]))
    if described is not None and needed > room:
        described, needed = None, len(packed[-1])
    if needed > room:
        raise ValueError(
            f"text: expected one whose weights fit into {most_bytes:,} bytes, got {needed:,}; take a shorter one"
        )
    chosen = _fitting([len(text) for text in packed], room - (needed - len(packed[-1])))
    data = {
        "unit": unit,
        "stacks": [_description(stack) for stack in moments[-1].stacks],
        "moments": [{"step": moments[at].step, "loss": moments[at].loss, "codes": packed[at]} for at in chosen],
        "detail": described,
    }
    notes = ["Weights are rounded: each is kept in one byte, and is off by less than 0.004."]
    if len(chosen) < len(moments):
        notes.append(f"{len(chosen)} of {len(moments)} kept steps are in the page, so that it stays small.")
    parts = {"title": html.escape(title), "subtitle": html.escape(subtitle), "note": " ".join(notes), "data": _script(data)}
    return _filled(_files() | parts)


def renewed(page: str) -> str:
    """The same texts and numbers in the files of today. Raises ValueError for what is no attention page."""
    head = re.search("<h1>(.*?)</h1><p>(.*?)</p></div>", page)
    note = re.search(r'<p id="note">(.*?)</p>', page)
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    if head is None or note is None or data is None:
        raise ValueError("page: expected an attention page, got something else")
    return _filled(_files() | {"title": head[1], "subtitle": head[2], "note": note[1], "data": data[1]})


def _files() -> dict[str, str]:
    return {name: (PAGE / f"attention.{end}").read_text(encoding="utf-8") for name, end in ENDINGS.items()}


ENDINGS = {"page": "html", "style": "css", "script": "js"}


def _filled(parts: Mapping[str, str]) -> str:
    """The HTML file with every {{name}} replaced. What is put in is not looked into again."""
    pieces = parts["page"].split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        filled += [parts[name].rstrip("\n"), rest]
    return "".join(filled)


def _script(data: Any) -> str:
    """JSON that can stand in a script element: no text in it can end the element."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _arrays(moment: Moment) -> list[np.ndarray]:
    return [array for stack in moment.stacks for array in stack.weights.values()]


def _codes(weights: np.ndarray) -> bytes:
    """255 sqrt(weight), rounded, and at least 1 for what is not 0; bfloat16 weights may exceed 1."""
    codes = np.rint(255 * np.sqrt(np.clip(weights, 0, 1)))
    return np.where(weights > 0, np.maximum(codes, 1), 0).astype(np.uint8).tobytes()


def _description(stack: Stack) -> dict[str, Any]:
    first = next(iter(stack.weights.values()))
    return {
        "name": stack.name,
        "title": stack.title,
        "rows": stack.rows,
        "columns": stack.columns,
        "same": stack.name != "cross",
        "layers": len(stack.weights),
        "heads": len(first),
    }


def _detail(detail: Sequence[QueryKey], then: str) -> dict[str, Any]:
    """Every array as 16-bit integers with a scale of its own."""
    arrays = [array for pair in detail for array in pair]
    scales = [max(float(np.abs(array).max()), 1e-30) / 32767 for array in arrays]
    codes = b"".join(np.rint(a / s).astype("<i2").tobytes() for a, s in zip(arrays, scales, strict=True))
    return {"width": arrays[0].shape[-1], "then": then, "scales": scales, "codes": _base64(codes)}


def _base64(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode("ascii")


def _fitting(sizes: Sequence[int], room: int) -> list[int]:
    """Positions, the last one among them, evenly spread, as many as fit into `room`."""
    for count in range(len(sizes), 1, -1):
        chosen = sorted({round(at) for at in np.linspace(0, len(sizes) - 1, count)})
        if sum(sizes[at] for at in chosen) <= room:
            return chosen
    return [len(sizes) - 1]
