"""Where the time of profiled steps went, by family of kernel.

From events of `torch.profiler`, the module computes the seconds of each family, and the time in
which the device was idle. On CUDA a family's time is that of its kernels. On a CPU it is that of
its operations, and the rest belongs to Python.

A kernel belongs to the code that launched it: the same matrix product is `matrix products` in a
decoder block and `head` in the output layer. A compiled attention is recognized by its own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

HEAD: Final[str] = "head"
ATTENTION: Final[str] = "attention"
PRODUCTS: Final[str] = "matrix products"
OPTIMIZER: Final[str] = "optimizer and clipping"
COPIES: Final[str] = "copies and casts"
OTHER: Final[str] = "elementwise, norms and the rest"
FAMILIES: Final[tuple[str, ...]] = (PRODUCTS, ATTENTION, HEAD, OPTIMIZER, COPIES, OTHER)
#: Parts of the names of an operation or of one that it runs in, in the order of asking.
_WITHIN: Final[dict[str, tuple[str, ...]]] = {
    OPTIMIZER: ("optimizer.step", "_foreach_", "fused_adam"),
    HEAD: ("_linearlogps", "_logpsbackward"),
    ATTENTION: (
        "flash",
        "varlen",
        "flex",
        "fmha",
        "scaled_dot_product",
        "_gatherrows",
        "_matmulattention",
    ),
}
#: Parts of the names of an operation, or of its kernel.
_OWN: Final[dict[str, tuple[str, ...]]] = {
    COPIES: ("memcpy", "memset", "aten::copy_", "aten::fill_", "aten::zero_"),
    PRODUCTS: ("aten::mm", "aten::addmm", "aten::bmm", "gemm", "nvjet", "cutlass", "xmma"),
}


@dataclass(frozen=True)
class KernelTimes:
    """What a profile says.

    Attributes:
        span_seconds: from the first event to the last one's end.
        busy_seconds: in which at least one kernel ran (CUDA), or operation (CPU).
        families: seconds of each family; their sum exceeds `busy_seconds` where kernels overlap.
        unattributed_seconds: of kernels that no operation claims.
    """

    span_seconds: float
    busy_seconds: float
    families: dict[str, float]
    unattributed_seconds: float

    @property
    def idle_seconds(self) -> float:
        """In which the device waited to be told what to do: steps are bound by launches."""
        return self.span_seconds - self.busy_seconds


def kernel_times(events: Iterable[Any]) -> KernelTimes:
    """Sum a profile's `FunctionEvent`s.

    Args:
        events: of `torch.profiler.profile.events()`, CPU and device alike.
    """
    listed = list(events)
    kernels = [e for e in listed if _is_kernel(e)]
    operations = [e for e in listed if e.device_type.name == "CPU" and not e.is_async]
    families: dict[str, float] = dict.fromkeys(FAMILIES, 0.0)
    for event in operations:
        for kernel, microseconds in _own_times(event, on_cpu=not kernels):
            families[_family([*_chain(event)], kernel)] += microseconds / 1e6
    span = _span(kernels or operations) / 1e6
    total = sum(families.values())
    if not kernels:
        return KernelTimes(span, min(total, span), families, 0.0)
    launched = sum(e.time_range.end - e.time_range.start for e in kernels) / 1e6
    return KernelTimes(span, _covered(kernels) / 1e6, families, max(0.0, launched - total))


def _own_times(event: Any, on_cpu: bool) -> Iterator[tuple[str, float]]:
    """Kernels that an operation launched itself, and their microseconds."""
    if on_cpu:
        yield event.name, event.self_cpu_time_total
        return
    for kernel in event.kernels:
        if kernel.name != event.name:  # an annotation's own shadow on the device
            yield kernel.name, kernel.duration


def _chain(event: Any) -> Iterator[str]:
    """The names of an operation and of those that it runs in, innermost first."""
    while event is not None:
        yield event.name
        event = event.cpu_parent


def _family(chain: list[str], kernel: str) -> str:
    own = [kernel.lower(), chain[0].lower()]
    within = [*own, *(name.lower() for name in chain[1:])]
    for names, families in ((within, _WITHIN), (own, _OWN)):
        for family, parts in families.items():
            if any(part in name for name in names for part in parts):
                return family
    return OTHER


def _is_kernel(event: Any) -> bool:
    return event.device_type.name != "CPU" and not event.is_user_annotation


def _span(events: list[Any]) -> float:
    if not events:
        return 0.0
    return max(e.time_range.end for e in events) - min(e.time_range.start for e in events)


def _covered(events: list[Any]) -> float:
    """Microseconds in which at least one of the events was."""
    covered, until = 0.0, float("-inf")
    for start, end in sorted((e.time_range.start, e.time_range.end) for e in events):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered
