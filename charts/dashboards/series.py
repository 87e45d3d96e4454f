"""The PromQL that several panels share.

The operator's series name a GPU or a ModelServing and not its pool; two of them tell which belongs to which. Engines'
series carry the labels that the chart's PodMonitor gives them.
"""

from __future__ import annotations

WINDOW = "$__rate_interval"
GPU_OF_POOL = "(max by (pool, node, gpu) (gpupack_gpu_memory_bytes) > bool 0)"
SERVING_OF_POOL = "max by (pool, namespace, serving) (gpupack_serving_info)"


def of_pool(by_gpu: str) -> str:
    """Whatever has a label `gpu`, with those of its pool and node. 1 in the join, so the value stays."""
    return f"max by (gpu) ({by_gpu}) * on (gpu) group_left (pool, node) {GPU_OF_POOL}"


def servings_of_pool(by_serving: str) -> str:
    """Whatever has the labels `namespace` and `serving`, with that of its pool."""
    return f"sum by (namespace, serving) ({by_serving}) * on (namespace, serving) group_left (pool) {SERVING_OF_POOL}"


def rate(counter: str, selector: str = "") -> str:
    return f"rate({counter}{_braced(selector)}[{WINDOW}])"


def increase(counter: str, selector: str = "") -> str:
    return f"increase({counter}{_braced(selector)}[{WINDOW}])"


def quantile(share: float, histogram: str, selector: str = "", by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) ({rate(f'{histogram}_bucket', selector)}))"


def mean(histogram: str, selector: str = "") -> str:
    return f"sum({rate(f'{histogram}_sum', selector)}) / sum({rate(f'{histogram}_count', selector)})"


def _braced(selector: str) -> str:
    return f"{{{selector}}}" if selector else ""
