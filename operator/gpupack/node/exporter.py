"""A dcgm-exporter over virtual GPUs: its text in both generations of names, units and labels.

Like the real one it collects every `period` and shows the same values until then, whatever the scrape interval;
profiling ratios are means over that period. Faults can be made: blank sentinels, NaN, absent fields, frozen values. It
does not know what the GPUs do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from aiohttp import web

from gpupack.node.engine_page import escape
from gpupack.node.exchange import Exchange, hang_up
from gpupack.node.program import TERMINATED, Exit, Sandbox
from gpupack.node.virtual_node import EXPORTER_PORT, Card
from gpupack.units import MIB

BLANK_RATIO = 140737488355328.0
BLANK_INTEGER = 9223372036854775792
"""DCGM's "no value" (dcgm_structs.h): DCGM_FP64_BLANK and DCGM_INT64_BLANK."""
DRIVER = "595.91.07"


class Generation(StrEnum):
    """Before and since dcgm-exporter 4.9 (DCGM 4.7): metric names, units and two labels changed."""

    OLD = "old"
    NEW = "new"


class ExporterFault(StrEnum):
    NONE = "none"
    UNREACHABLE = "unreachable"
    BLANK = "blank"
    NAN = "nan"
    FROZEN = "frozen"


class Field(StrEnum):
    """What is exported; any can be left out, as a cluster that does not enable it does."""

    DRAM_ACTIVE = "dram_active"
    SM_ACTIVE = "sm_active"
    GPU_UTIL = "gpu_util"
    FB_USED = "fb_used"
    FB_FREE = "fb_free"
    POWER = "power"
    XID = "xid"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardNow:
    """One GPU over the last period: ratios, bytes, watts, and the code of the last XID, 0 if there was none.

    `holder`: container, namespace and pod that a device plugin gave it to.
    """

    card: Card
    dram_active: float
    sm_active: float
    gpu_held: float
    fb_used: int
    power: float
    xid: int = 0
    holder: tuple[str, str, str] | None = None

    def value(self, field: Field) -> float:
        match field:
            case Field.DRAM_ACTIVE:
                return self.dram_active
            case Field.SM_ACTIVE:
                return self.sm_active
            case Field.GPU_UTIL:
                return self.gpu_held
            case Field.FB_USED:
                return float(self.fb_used)
            case Field.FB_FREE:
                return float(self.card.kind.memory_bytes - self.fb_used)
            case Field.POWER:
                return self.power
            case Field.XID:
                return float(self.xid)


@dataclass(frozen=True, slots=True)
class _Metric:
    """`scale` takes a base unit to the exporter's."""

    name: str
    scale: float
    help: str


_XID = _Metric("DCGM_FI_DEV_XID_ERRORS", 1.0, "Value of the last XID error encountered.")
_DRAM_HELP = "Ratio of cycles the device memory interface is active sending or receiving data."
_SM_HELP = "The ratio of cycles an SM has at least 1 warp assigned."
_OLD = {
    Field.DRAM_ACTIVE: _Metric("DCGM_FI_PROF_DRAM_ACTIVE", 1.0, _DRAM_HELP),
    Field.SM_ACTIVE: _Metric("DCGM_FI_PROF_SM_ACTIVE", 1.0, _SM_HELP),
    Field.GPU_UTIL: _Metric("DCGM_FI_DEV_GPU_UTIL", 100.0, "GPU utilization (in %)."),
    Field.FB_USED: _Metric("DCGM_FI_DEV_FB_USED", 1.0 / MIB, "Framebuffer memory used (in MiB)."),
    Field.FB_FREE: _Metric("DCGM_FI_DEV_FB_FREE", 1.0 / MIB, "Framebuffer memory free (in MiB)."),
    Field.POWER: _Metric("DCGM_FI_DEV_POWER_USAGE", 1.0, "Power draw (in W)."),
    Field.XID: _XID,
}
_NEW = {
    Field.DRAM_ACTIVE: _Metric("DCGM_FI_PROF_DRAM_UTIL_RATIO", 1.0, _DRAM_HELP),
    Field.SM_ACTIVE: _Metric("DCGM_FI_PROF_SM_UTIL_RATIO", 1.0, _SM_HELP),
    Field.GPU_UTIL: _Metric("DCGM_FI_DEV_GPU_UTIL_RATIO", 1.0, "GPU utilization, 0 to 1."),
    Field.FB_USED: _Metric("DCGM_FI_DEV_FB_USED_BYTES", 1.0, "Framebuffer memory used in bytes."),
    Field.FB_FREE: _Metric("DCGM_FI_DEV_FB_FREE_BYTES", 1.0, "Framebuffer memory free in bytes."),
    Field.POWER: _Metric("DCGM_FI_DEV_BOARD_POWER_WATTS", 1.0, "Power draw in watts."),
    Field.XID: _XID,
}
_PROFILING = frozenset({Field.DRAM_ACTIVE, Field.SM_ACTIVE})
"""What is told of a MIG slice: shares of the slice's own. The rest is of whole GPUs."""
_BLANKS = {Field.DRAM_ACTIVE: BLANK_RATIO, Field.SM_ACTIVE: BLANK_RATIO, Field.POWER: BLANK_RATIO}


def page(
    now: Sequence[CardNow], node: str, generation: Generation, absent: frozenset[Field], fault: ExporterFault
) -> str:
    """The text of /metrics."""
    lines = []
    for field, metric in (_NEW if generation is Generation.NEW else _OLD).items():
        if field in absent:
            continue
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} gauge"]
        for each in now:
            if each.card.parent and field not in _PROFILING:
                continue
            value = _shown(each.value(field) * metric.scale, field)
            if fault is ExporterFault.BLANK:
                value = f"{_BLANKS[field]:f}" if field in _BLANKS else str(BLANK_INTEGER)
            elif fault is ExporterFault.NAN:
                value = "NaN"
            lines.append(f"{metric.name}{{{_labels(each, node, generation)}}} {value}")
    return "\n".join((*lines, ""))


class Exporter:
    """A program of the virtual node. `read` gives each GPU over the time since it was last called."""

    def __init__(
        self,
        sandbox: Sandbox,
        exchange: Exchange,
        read: Callable[[], Sequence[CardNow]],
        *,
        node: str,
        period_seconds: float,
        generation: Generation,
        absent: frozenset[Field],
    ) -> None:
        self.fault = ExporterFault.NONE
        self.absent = absent
        self._sandbox = sandbox
        self._exchange = exchange
        self._read = read
        self._node = node
        self._period = period_seconds
        self._generation = generation
        self._asked = asyncio.Event()
        self._now: Sequence[CardNow] = ()

    async def run(self) -> Exit:
        self._now = self._read()
        self._exchange.open(self._sandbox.address, EXPORTER_PORT, self._answer)
        loop = asyncio.get_running_loop()
        due = loop.time()
        try:
            while not self._asked.is_set():
                due += self._period
                try:
                    async with asyncio.timeout_at(due):
                        await self._asked.wait()
                except TimeoutError:
                    if self.fault is not ExporterFault.FROZEN:
                        self._now = self._read()
        finally:
            self._exchange.close(self._sandbox.address, EXPORTER_PORT)
        return Exit(code=TERMINATED)

    def terminate(self) -> None:
        self._asked.set()

    def answers(self, port: int | None, path: str | None) -> bool:
        return port == EXPORTER_PORT and path in (None, "/health", "/metrics")

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.fault is ExporterFault.UNREACHABLE:
            hang_up(request)
        match request.path:
            case "/health":
                return web.Response(text="KO" if not self._now else "OK")
            case "/metrics":
                text = page(self._now, self._node, self._generation, self.absent, self.fault)
                return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4"})
        return web.Response(status=404, text="404 page not found\n")


def _labels(now: CardNow, node: str, generation: Generation) -> str:
    """A slice is told apart by profile and number; that of a pod with a claim also by its own uuid.

    What a device plugin gave away names the pod that has it.
    """
    new, card = generation is Generation.NEW, now.card
    pairs = {
        "gpu": str(card.index),
        "UUID": card.parent or card.uuid,
        "pci_bus_id": f"0000{card.bus_id.upper()}",
        "device": f"nvidia{card.index}",
        "modelName": card.kind.product_names[0],
        **({"GPU_I_PROFILE": card.kind.mig_profile, "GPU_I_ID": str(card.instance)} if card.parent else {}),
        **({"dra_mig_device_uuid": card.uuid} if card.parent and now.fb_used and not now.holder else {}),
        "hostname" if new else "Hostname": node,
        "DCGM_FI_SYSTEM_DRIVER_VERSION" if new else "DCGM_FI_DRIVER_VERSION": DRIVER,
        **dict(zip(("container", "namespace", "pod"), now.holder or (), strict=False)),
    }
    return ",".join(f'{key}="{escape(value)}"' for key, value in pairs.items())


def _shown(value: float, field: Field) -> str:
    """Ratios and watts with six decimals, the rest as whole numbers, as the exporter prints them."""
    if field in (Field.DRAM_ACTIVE, Field.SM_ACTIVE, Field.POWER):
        return f"{value:.6f}"
    return f"{value:.4f}" if value <= 1.0 else f"{value:.0f}"
