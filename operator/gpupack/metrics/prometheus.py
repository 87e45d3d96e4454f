"""Prometheus text to numbers, for the series of the table only.

A page of vLLM has some 600 lines of which about a tenth are named in the table; one compiled pattern per exporter finds
those, the rest is never looked at. Values come out in base units; NaN and infinities come out as they are and blank
sentinels of DCGM are dropped. Knows nothing of time.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from operator import sub

from gpupack.facts.counter import Counter
from gpupack.metrics import agent_series, series
from gpupack.metrics.series import Across, Exporter, Kind, Name, Quantity, Series

COUNTERS = {
    Counter.DCGM_DRAM_ACTIVE: Quantity.DRAM_ACTIVE,
    Counter.GPM_DRAM_BANDWIDTH: Quantity.DRAM_BANDWIDTH,
    Counter.NVML_MEMORY_BUSY: Quantity.MEMORY_BUSY,
}
"""Best first: of a GPU that several tell of, the first there is."""
DEFAULT_COUNTERS = {
    Exporter.DCGM: Counter.DCGM_DRAM_ACTIVE,
    Exporter.AGENT: Counter.GPM_DRAM_BANDWIDTH,
}
"""The one that is missing where an exporter tells of a GPU and of no traffic."""
UUID_LABELS = {Exporter.DCGM: "UUID", Exporter.AGENT: "uuid"}
INSTANCE_LABEL, INSTANCE_UUID_LABEL = "GPU_I_ID", "dra_mig_device_uuid"
"""On what dcgm-exporter tells of a MIG instance, and whose it is where a claim has it."""
POD_LABELS = (("exported_namespace", "exported_pod"), ("namespace", "pod"))
"""Who has it where a device plugin gave it; the first as a Prometheus calls them that keeps its own."""
PARENT_LABEL = "parent_uuid"
"""On what the node agent tells of a MIG instance: the uuid of its GPU."""
BLANK = 1.4e14
"""DCGM says "no value" with 140737488355328 and above (dcgm_structs.h); some exporters let that through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Cumulative counts by upper bound; the last bound is infinite. `total` is the sum of all observed values."""

    bounds: tuple[float, ...]
    counts: array[float]
    total: float
    count: float

    def since(self, earlier: Histogram) -> Histogram:
        """What was observed after `earlier`. If the buckets are others, only total and count are kept."""
        if self.bounds != earlier.bounds:
            return Histogram(
                bounds=(), counts=array("d"), total=self.total - earlier.total, count=self.count - earlier.count
            )
        return Histogram(
            bounds=self.bounds,
            counts=array("d", map(sub, self.counts, earlier.counts)),
            total=self.total - earlier.total,
            count=self.count - earlier.count,
        )

    def mean_since(self, earlier: Histogram) -> float | None:
        """Of what was observed after `earlier`; None if nothing was."""
        count = self.count - earlier.count
        return (self.total - earlier.total) / count if count > 0 else None

    def quantile(self, share: float) -> float | None:
        """The value that `share` of the observations do not exceed, straight within its bucket.

        None without observations, and where it lies in the first bucket: nothing is known below that bound, and a
        figure from there would be the bucket's, not the engine's. Above the last finite bound it is that bound.
        """
        if not self.counts or self.counts[-1] <= 0:
            return None
        wanted = share * self.counts[-1]
        if wanted <= self.counts[0]:
            return None
        for (low, below), (high, up_to) in pairwise(zip(self.bounds, self.counts, strict=True)):
            if up_to >= wanted:
                return low if math.isinf(high) else low + (high - low) * (wanted - below) / (up_to - below)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePage:
    """One `/metrics` of a vLLM server; None is a series that it does not have."""

    running: float | None
    waiting: float | None
    kv_usage: float | None
    kv_blocks: float | None
    finished: float | None
    prompt_tokens: float | None
    generation_tokens: float | None
    preemptions: float | None
    ttft: Histogram | None
    itl: Histogram | None
    input_length: Histogram | None
    output_length: Histogram | None
    step_tokens: Histogram | None = None
    read_bytes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPage:
    """One GPU on a page of dcgm-exporter or of the node agent: a ratio, bytes, watts, the code of the last XID.

    `counter` says what the ratio is of. `card`: of a MIG instance the uuid of its GPU, empty where the page does not
    tell. What a device plugin gave away is called by the pod that has it, `namespace/pod`. `core_wait`: of the time
    that threads of its engine which is worst off could have run, the share that they waited for a core.
    """

    uuid: str
    dram_active: float | None
    fb_used: float | None
    power: float | None
    xid: float | None = None
    counter: Counter = Counter.DCGM_DRAM_ACTIVE
    card: str = ""
    core_wait: float | None = None

    def origin(self, quantity: Quantity) -> str:
        """The newest name of the series that it has this from, for messages."""
        exporter = Exporter.DCGM if self.counter is Counter.DCGM_DRAM_ACTIVE else Exporter.AGENT
        return _ORIGINS.get((exporter, quantity), "")


def parse_engine(page: bytes) -> EnginePage:
    values: dict[Quantity, _Numbers] = {}
    buckets: dict[Quantity, _Buckets] = {}
    for one, rank, suffix, labels, value in _samples(Exporter.VLLM, page):
        if one.kind is Kind.HISTOGRAM:
            buckets.setdefault(one.quantity, _Buckets()).take(rank, suffix, labels, value)
        elif one.kind is Kind.LABEL:
            if (said := _label(one.label, labels)) is not None and said.isdigit():
                values.setdefault(one.quantity, _Numbers()).take(rank, float(said), one.across)
        else:
            values.setdefault(one.quantity, _Numbers()).take(rank, value, one.across)

    def number(quantity: Quantity) -> float | None:
        return values[quantity].value if quantity in values else None

    def histogram(quantity: Quantity) -> Histogram | None:
        return buckets[quantity].histogram() if quantity in buckets else None

    return EnginePage(
        running=number(Quantity.RUNNING),
        waiting=number(Quantity.WAITING),
        kv_usage=number(Quantity.KV_USAGE),
        kv_blocks=number(Quantity.KV_BLOCKS),
        finished=number(Quantity.FINISHED),
        prompt_tokens=number(Quantity.PROMPT_TOKENS),
        generation_tokens=number(Quantity.GENERATION_TOKENS),
        preemptions=number(Quantity.PREEMPTIONS),
        ttft=histogram(Quantity.TTFT),
        itl=histogram(Quantity.ITL),
        input_length=histogram(Quantity.INPUT_LENGTH),
        output_length=histogram(Quantity.OUTPUT_LENGTH),
        step_tokens=histogram(Quantity.STEP_TOKENS),
        read_bytes=number(Quantity.READ_BYTES),
    )


def parse_gpus(page: bytes, exporter: Exporter = Exporter.DCGM) -> tuple[GpuPage, ...]:
    """By UUID. A GPU that several pods share is printed once per pod with the same value: the greatest is taken.

    What dcgm-exporter tells of a MIG instance is relative to it, and is the slice's where the row names that or who has
    it. A lost GPU is XID 79, and another has the last XID that was told.
    """
    cards: dict[str, str] = {}
    found: dict[str, dict[Quantity, _Numbers]] = {}
    told: dict[str, tuple[float, float]] = {}
    identity = UUID_LABELS[exporter]
    for one, rank, _, labels, value in _samples(exporter, page):
        uuid, card = _label(identity, labels), _label(PARENT_LABEL, labels)
        if _label(INSTANCE_LABEL, labels):
            uuid, card = instance_name(partial(_label, labels=labels)), uuid
        if uuid is None or value >= BLANK:
            continue
        if card:
            cards[uuid] = card
        if one.quantity is Quantity.XID_TIME:
            if (code := _xid(labels)) is not None:
                told[uuid] = max(told.get(uuid, (0.0, 0.0)), (value, code))
            continue
        found.setdefault(uuid, {}).setdefault(one.quantity, _Numbers()).take(rank, value, one.across)

    last = {uuid: code for uuid, (_, code) in told.items()}

    def number(uuid: str, quantity: Quantity) -> float | None:
        held = found[uuid].get(quantity)
        return None if held is None else held.value

    def page_of(uuid: str) -> GpuPage:
        counter = next(
            (each for each, quantity in COUNTERS.items() if quantity in found[uuid]), DEFAULT_COUNTERS[exporter]
        )
        return GpuPage(
            uuid=uuid,
            dram_active=number(uuid, COUNTERS[counter]),
            fb_used=number(uuid, Quantity.FB_USED),
            power=number(uuid, Quantity.POWER),
            xid=number(uuid, Quantity.XID) or last.get(uuid, number(uuid, Quantity.XID)),
            counter=counter,
            card=cards.get(uuid, ""),
            core_wait=number(uuid, Quantity.CORE_WAIT),
        )

    return tuple(page_of(uuid) for uuid in sorted(found))


def instance_name(label: Callable[[str], str | None]) -> str | None:
    """How an instance on a row of dcgm-exporter is called here: by its own uuid, or by the pod that has it."""
    if uuid := label(INSTANCE_UUID_LABEL):
        return uuid
    pods = ((label(namespace), label(pod)) for namespace, pod in POD_LABELS)
    return next((f"{namespace}/{pod}" for namespace, pod in pods if namespace and pod), None)


def _xid(labels: bytes) -> float | None:
    """The code in the label of one of the agent's events; None for what is no XID."""
    code = (_label(agent_series.EVENT_LABEL, labels) or "").partition(agent_series.XID_EVENT)[2]
    return float(code) if code.isdecimal() else None


class _Numbers:
    """The value of one series: samples of its best spelling, put together."""

    __slots__ = ("rank", "value")

    def __init__(self) -> None:
        self.rank = -1
        self.value = 0.0

    def take(self, rank: int, value: float, across: Across) -> None:
        if self.rank < 0 or rank < self.rank:
            self.rank, self.value = rank, value
        elif rank == self.rank:
            self.value = self.value + value if across is Across.SUM else max(self.value, value)


class _Buckets:
    __slots__ = ("at_most", "count", "rank", "total")

    def __init__(self) -> None:
        self.rank = -1
        self._clear()

    def _clear(self) -> None:
        self.at_most: dict[float, float] = {}
        self.total = self.count = 0.0

    def take(self, rank: int, suffix: bytes, labels: bytes, value: float) -> None:
        if 0 <= self.rank < rank:
            return
        if rank != self.rank:
            self.rank = rank
            self._clear()
        if suffix == b"_bucket":
            if (bound := _label("le", labels)) is not None:
                upper = float(bound)
                self.at_most[upper] = self.at_most.get(upper, 0.0) + value
        elif suffix == b"_sum":
            self.total += value
        elif suffix == b"_count":
            self.count += value

    def histogram(self) -> Histogram:
        bounds = _shared(tuple(sorted(self.at_most)))
        counts = array("d", (self.at_most[bound] for bound in bounds))
        return Histogram(bounds=bounds, counts=counts, total=self.total, count=self.count)


@lru_cache(maxsize=64)
def _shared(bounds: tuple[float, ...]) -> tuple[float, ...]:
    """Hundreds of engines have the same buckets; one tuple serves them all."""
    return bounds


@lru_cache(maxsize=16)
def _label_pattern(name: str) -> re.Pattern[bytes]:
    return re.compile(rb"(?:^|,)\s*" + name.encode() + rb'="((?:[^"\\]|\\.)*)"')


def _label(name: str, labels: bytes) -> str | None:
    found = _label_pattern(name).search(labels)
    return None if found is None else found[1].decode(errors="replace")


def read_from(exporter: Exporter) -> tuple[Series, ...]:
    return agent_series.READ if exporter is Exporter.AGENT else series.of(exporter)


class _Reader:
    """The compiled pattern of one exporter and what each name on it stands for."""

    def __init__(self, exporter: Exporter) -> None:
        self.named: dict[bytes, tuple[Series, int, Name]] = {
            name.text.encode(): (one, rank, name) for one in read_from(exporter) for rank, name in enumerate(one.names)
        }
        # A literal beginning lets the search skip to it at memory speed; longer names first, or FB_USED hides
        # FB_USED_BYTES from it.
        prefix = exporter.value.encode()
        tails = [re.escape(name.removeprefix(prefix)) for name in sorted(self.named, key=len, reverse=True)]
        self.pattern = re.compile(
            b"\n(%s(?:%s))" % (re.escape(prefix), b"|".join(tails))
            + rb"(_bucket|_sum|_count)?(?:\{([^\n]*)\})?[ \t]+(\S+)"
        )


_READERS = {exporter: _Reader(exporter) for exporter in Exporter}
_ORIGINS = {
    (exporter, one.quantity): one.names[0].text for exporter in Exporter for one in reversed(read_from(exporter))
}


def _samples(exporter: Exporter, page: bytes) -> Iterator[tuple[Series, int, bytes, bytes, float]]:
    """Series, rank of the spelling, histogram suffix, labels and value in base units of every line that is named."""
    reader = _READERS[exporter]
    for found in reader.pattern.finditer(b"\n" + page):
        text, suffix, labels, number = found.groups(default=b"")
        one, rank, name = reader.named[text]
        if bool(suffix) is not (one.kind is Kind.HISTOGRAM):
            continue
        try:
            value = float(number)
        except ValueError:
            continue
        yield one, rank, suffix, labels, value * name.factor
