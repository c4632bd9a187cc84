"""Where the time of the twin's step goes: torch's profiler, summed by kind of work."""

from __future__ import annotations

from torch.profiler import ProfilerActivity, profile

from train.benchmarks.contenders import Shape, twin

KINDS = {  # kind of work: beginnings of the names of torch's operations
    "products of linear layers": ("mkldnn::_linear", "aten::mm", "aten::addmm"),
    "attention": ("aten::_scaled_dot_product",),
    "activation": ("aten::gelu",),
    "norms": ("aten::native_layer_norm",),
    "optimizer and clipping": ("aten::_fused_adamw", "Optimizer.step", "aten::_foreach", "aten::linalg_vector_norm"),
    "copies and zeros": ("aten::copy_", "aten::fill_", "aten::zero_", "aten::cat", "aten::empty"),
}


def twin_profile(shape: Shape, steps: int = 5) -> dict[str, float]:
    """Share of the time of each kind of work, on its own and without what it calls, in descending order; `other` is last."""
    contender = twin(shape, shape.random_batch(0))
    contender.step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            contender.step()
    times = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    total = sum(times.values())
    shares = {
        kind: sum(time for name, time in times.items() if name.startswith(starts)) / total for kind, starts in KINDS.items()
    }
    ordered = dict(sorted(shares.items(), key=lambda item: -item[1]))
    return ordered | {"other": 1 - sum(shares.values())}
