"""GPU readings out of a Prometheus: one query for all GPUs per series, with the time at which each sample was taken.

The built-in queries ask for raw samples (a range), because the value of an instant query carries the time of the asking
and may be minutes old. A query of the user's is taken at its word and as one period old. A device's value is never
summed: of the rows that name one GPU the newest counts, of equally new ones the greatest. What refuses comes out as a
Refusal that says what to do. Knows HTTP and PromQL, not where a token comes from.
"""

from __future__ import annotations

import json
import math
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx

from gpupack.facts.counter import Counter
from gpupack.facts.observation import Cause
from gpupack.metrics.prometheus import (
    BLANK,
    COUNTERS,
    INSTANCE_LABEL,
    PARENT_LABEL,
    UUID_LABELS,
    GpuPage,
    instance_name,
    read_from,
)
from gpupack.metrics.series import Name, Quantity
from gpupack.metrics.windows import GpuReadings, no_gpu_readings, readings_of
from gpupack.units import Seconds

ANSWER_SECONDS = 5.0
LONGEST_ANSWER_BYTES = 16 * 2**20
"""Three samples of 512 GPUs, each named by a dozen long labels, are a tenth of it."""
TOLD_OF_AN_ERROR = 200


class Refused(StrEnum):
    """Why a source gives nothing, fit for a condition's reason."""

    UNREACHABLE = "Unreachable"
    UNTRUSTED = "CertificateNotTrusted"
    UNAUTHORIZED = "Unauthorized"
    QUERY = "QueryRefused"
    NO_CREDENTIALS = "NoCredentials"


CAUSES: Mapping[Refused, Cause] = {
    Refused.UNREACHABLE: Cause.UNREACHABLE,
    Refused.UNTRUSTED: Cause.UNREACHABLE,
    Refused.UNAUTHORIZED: Cause.UNAUTHORIZED,
    Refused.QUERY: Cause.REFUSED,
    Refused.NO_CREDENTIALS: Cause.UNAUTHORIZED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """`message` is a sentence on what is wrong and one on what to do."""

    reason: Refused
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusTarget:
    """`url` without /api. `queries` are the user's own, each for one quantity of all GPUs in its base unit.

    `counter` is what the user's query for DRAM activity gives. `look_back` is how old a sample may be.
    """

    url: str
    look_back: Seconds
    queries: tuple[tuple[Quantity, str], ...] = ()
    counter: Counter = Counter.DCGM_DRAM_ACTIVE

    @property
    def address(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A bearer token and the PEM text of certificate authorities; None: no token, and those of the system."""

    token: str | None = field(default=None, repr=False)
    authorities: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Spelling:
    quantity: Quantity
    counter: Counter | None
    rank: int
    name: Name


def _spellings() -> Iterator[tuple[str, _Spelling]]:
    counters = {quantity: counter for counter, quantity in COUNTERS.items()}
    for exporter in UUID_LABELS:
        for one in read_from(exporter):
            for rank, name in enumerate(one.names):
                counter = counters.get(one.quantity)
                kind = Quantity.DRAM_ACTIVE if counter is not None else one.quantity
                preferred = list(Counter).index(counter) if counter is not None else list(UUID_LABELS).index(exporter)
                yield name.text, _Spelling(kind, counter, 10 * preferred + rank, name)


_SPELLINGS: Mapping[str, _Spelling] = dict(_spellings())
ASKED = (Quantity.DRAM_ACTIVE, Quantity.FB_USED, Quantity.POWER, Quantity.XID)


def built_in(quantity: Quantity, look_back: Seconds) -> str:
    """Raw samples of every spelling of a quantity, of whole GPUs and MIG instances."""
    names = "|".join(name for name, each in _SPELLINGS.items() if each.quantity is quantity)
    return f'{{__name__=~"{names}"}}[{math.ceil(look_back)}s]'


@dataclass(frozen=True, slots=True)
class _Found:
    """The lowest rank counts, then the newest, then the greatest."""

    rank: int
    at: float
    value: float
    counter: Counter | None
    card: str

    def beats(self, other: _Found | None) -> bool:
        return other is None or (self.rank, -self.at, -self.value) < (other.rank, -other.at, -other.value)


class PrometheusHistory:
    """The last answers of one Prometheus, by GPU, and why there are none. `refusal` is None while it answers."""

    def __init__(self) -> None:
        self.refusal: Refusal | None = None
        self._gpus: dict[str, GpuReadings] = {}
        self._at: float | None = None

    @property
    def answered(self) -> bool:
        return self._at is not None

    def refuse(self, refusal: Refusal) -> None:
        """What was read before stays as old as it is."""
        self.refusal = refusal

    def add(self, at: float, gpus: Mapping[str, GpuReadings]) -> None:
        self.refusal = None
        self._gpus, self._at = dict(gpus), at

    def readings(self, uuid: str, at: float, limit: float) -> GpuReadings:
        if self._at is None or not 0 <= at - self._at <= limit:
            return no_gpu_readings(Cause.STALE if self.refusal is None else CAUSES[self.refusal.reason])
        return self._gpus.get(uuid) or no_gpu_readings(Cause.NO_SERIES)


async def ask(
    target: PrometheusTarget, credentials: Credentials, *, now: float, period: Seconds
) -> Mapping[str, GpuReadings] | Refusal:
    """Every GPU that it knows, or why it says nothing."""
    try:
        trusted = ssl.create_default_context(cadata=credentials.authorities)
    except ssl.SSLError as problem:
        return Refusal(
            reason=Refused.NO_CREDENTIALS,
            message=f"ca.crt is no certificate ({problem.reason}). Write the authority's PEM text into the Secret.",
        )
    headers = {} if credentials.token is None else {"Authorization": f"Bearer {credentials.token}"}
    own = dict(target.queries)
    found: dict[Quantity, dict[str, _Found]] = {}
    try:
        async with httpx.AsyncClient(
            verify=trusted, trust_env=False, timeout=ANSWER_SECONDS, headers=headers, follow_redirects=False
        ) as client:
            for quantity in ASKED:
                query = own.get(quantity) or built_in(quantity, target.look_back)
                answer = await _answer(client, target.url, query)
                if isinstance(answer, Refusal):
                    return answer
                named = None if quantity not in own else (quantity, target.counter)
                found[quantity] = _by_gpu(answer, quantity, named, now - period)
    except httpx.HTTPError as problem:
        return _broken(target.url, problem)
    return _readings(found)


async def _answer(client: httpx.AsyncClient, url: str, query: str) -> list[Any] | Refusal:
    body = bytearray()
    async with client.stream("GET", f"{url.rstrip('/')}/api/v1/query", params={"query": query}) as response:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > LONGEST_ANSWER_BYTES:
                return Refusal(
                    reason=Refused.QUERY,
                    message=f"{url} answers with more than {LONGEST_ANSWER_BYTES // 2**20} MiB. Narrow the query.",
                )
    status = response.status_code
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Refusal(
            reason=Refused.UNAUTHORIZED,
            message=f"{url} refuses the token ({status}). Put one that may read metrics into the Secret that "
            "spec.metrics.prometheus.secretName names, or allow it to the operator's ServiceAccount.",
        )
    if status >= httpx.codes.INTERNAL_SERVER_ERROR and status != httpx.codes.SERVICE_UNAVAILABLE:
        return Refusal(reason=Refused.UNREACHABLE, message=f"{url} answers {status}. Look at what stands there.")
    try:
        said = json.loads(body)
        if said["status"] == "success":
            return list(said["data"]["result"])
        why = str(said.get("error", said["status"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Refusal(
            reason=Refused.QUERY,
            message=f"{url} answers {status} and not as a Prometheus does. Give the address to which /api/v1/query is "
            "added.",
        )
    return Refusal(
        reason=Refused.QUERY,
        message=f"{url} refuses a query: {why[:TOLD_OF_AN_ERROR]}. Mend spec.metrics.prometheus.queries, or leave them "
        "out.",
    )


def _broken(url: str, problem: httpx.HTTPError) -> Refusal:
    cause: BaseException | None = problem
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Refusal(
                reason=Refused.UNTRUSTED,
                message=f"The certificate of {url} is not trusted: {cause.verify_message}. Put the authority's "
                "certificate into the Secret as ca.crt, and name the Secret in spec.metrics.prometheus.secretName.",
            )
        cause = cause.__cause__ or cause.__context__
    return Refusal(
        reason=Refused.UNREACHABLE,
        message=f"{url} cannot be reached ({type(problem).__name__}). Look at spec.metrics.prometheus.url and at what "
        "network policies let out.",
    )


def _by_gpu(
    result: Iterable[Any], quantity: Quantity, named: tuple[Quantity, Counter] | None, taken: float
) -> dict[str, _Found]:
    """The one row of each GPU that counts. `named`: what the user's query gives, true as of `taken`."""
    best: dict[str, _Found] = {}
    for row in result:
        try:
            labels = row["metric"]
            at, text = row["value"] if "value" in row else row["values"][-1]
            sampled, value = float(at), float(text)
        except (KeyError, TypeError, ValueError, IndexError):
            continue
        uuid = next((labels[key] for key in UUID_LABELS.values() if labels.get(key)), None)
        card = labels.get(PARENT_LABEL)
        if labels.get(INSTANCE_LABEL):
            uuid, card = instance_name(labels.get), uuid
        if uuid is None or value >= BLANK:
            continue
        if named is not None:
            candidate = _Found(0, taken, value, named[1], card or "")
        else:
            spelling = _SPELLINGS.get(labels.get("__name__", ""))
            if spelling is None or spelling.quantity is not quantity:
                continue
            candidate = _Found(spelling.rank, sampled, value * spelling.name.factor, spelling.counter, card or "")
        if candidate.beats(best.get(uuid)):
            best[uuid] = candidate
    return best


def _readings(found: Mapping[Quantity, Mapping[str, _Found]]) -> dict[str, GpuReadings]:
    """A GPU's readings are as old as the oldest of them."""
    readings = {}
    for uuid in {each for by_gpu in found.values() for each in by_gpu}:
        held = {quantity: by_gpu[uuid] for quantity, by_gpu in found.items() if uuid in by_gpu}
        dram = held.get(Quantity.DRAM_ACTIVE)

        def value(quantity: Quantity, held: Mapping[Quantity, _Found] = held) -> float | None:
            return held[quantity].value if quantity in held else None

        page = GpuPage(
            uuid=uuid,
            dram_active=value(Quantity.DRAM_ACTIVE),
            fb_used=value(Quantity.FB_USED),
            power=value(Quantity.POWER),
            xid=value(Quantity.XID),
            counter=(dram.counter if dram is not None else None) or Counter.DCGM_DRAM_ACTIVE,
            card=next((each.card for each in held.values() if each.card), ""),
        )
        readings[uuid] = readings_of(page, min(each.at for each in held.values()))
    return readings
