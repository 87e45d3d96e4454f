"""What speaks against one more replica on a GPU, each objection at its border, and which GPUs are looked at at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupack.decide.board import Board
from gpupack.decide.demand import Basis, Demand
from gpupack.decide.pack import (
    Candidate,
    bandwidth_ceiling,
    data_missing,
    demand_met,
    effect,
    even_share,
    gain_of,
    held_by_others,
    host_cpu,
    itl_of,
    latency_slo,
    marginal_gain,
    max_replicas,
    memory,
    objections,
    promise_of,
    rates_on,
    rolled_back,
    saturation_of,
    sharing_of,
    survey,
    ttft_of,
    went_past,
)
from gpupack.facts.estimate import Source
from gpupack.facts.experiment import Compared, Undone
from gpupack.facts.observation import Cause, Holder, Missing, Observation, Phase, Reading, Refused
from gpupack.facts.placement import Withdrawn
from gpupack.facts.serving import ScalingMode, ServingKey, Sharing, SharingWish, Slo, Statistic
from gpupack.plan import Reason, Unit, Verdict
from gpupack.units import GIB, Bytes, Ratio, Seconds

from ..strategies import NOON, key
from .boards import A, B, board_on, demand, seen, with_placement, with_pod

CHAT, DOCS = key("chat"), key("docs")
NONE = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}"
ONE = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a}]"
TWO = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a, count: 2}]"
BESIDE = "gpus: {a: , b: }\nservings: {chat: {batch: 64}, docs: {batch: 64}}\nreplicas: [{serving: docs, gpu: a}]"


def candidate(board: Board, asked: Demand | None = None, *, sharing: Sharing = Sharing.MPS, **fields: Any) -> Candidate:
    """One more replica of chat on the first GPU."""
    chosen = board.chosen(CHAT, A)
    assert chosen is not None
    planned = len(board.of[CHAT])
    given = {"chosen": chosen, "gpu": board.facts.gpus[A], "planned": planned, **fields}
    return Candidate(
        board=board, serving=board.facts.servings[CHAT], sharing=sharing, demand=asked or demand(planned + 1), **given
    )  # fmt: skip


def said(found: Any) -> list[tuple[str, float, float, str, str]]:
    return [(each.reason.value, each.observed.value, each.limit.value, each.unit.value, each.detail) for each in found]


def servings(observation: Observation, name: str, **changes: Any) -> Observation:
    """The same, but that serving is another one."""
    return replace(
        observation,
        servings=tuple(replace(each, **changes) if each.key.name == name else each for each in observation.servings),
    )


# Data, and others


def test_who_holds_a_gpu_is_said_with_nothing_allowed() -> None:
    observation = seen(ONE)
    held = replace(observation, holders=(Holder(gpu_uuid=A, kind="ResourceClaim", name="lab/x"),))
    assert said(held_by_others(candidate(board_on(held)))) == [("HeldByOthers", 1.0, 0.0, "", "ResourceClaim lab/x")]
    cordoned = replace(observation, gpus=tuple(replace(each, cordoned=True) for each in observation.gpus))
    assert said(held_by_others(candidate(board_on(cordoned)))) == [
        ("HeldByOthers", 1.0, 0.0, "", "node node-0 is cordoned")
    ]
    claims = tuple(replace(each, namespace="other") for each in observation.claims)
    assert said(held_by_others(candidate(board_on(replace(observation, claims=claims)))))[0] == (
        "HeldByOthers", 1.0, 0.0, "", "namespace other, which holds the claim of this GPU",
    )  # fmt: skip


def test_one_that_runs_alone_is_in_its_own_way_only_while_another_one_is_wanted() -> None:
    board = board_on(seen(ONE))
    alone = {"sharing": Sharing.EXCLUSIVE}
    assert [each[1] for each in said(held_by_others(candidate(board, demand(2), **alone)))] == [1.0]
    assert said(held_by_others(candidate(board, demand(1), **alone))) == []
    beside = candidate(board_on(seen(BESIDE)), demand(0), **alone)
    assert said(held_by_others(beside)) == [("HeldByOthers", 1.0, 0.0, "replicas", "team/docs; team/chat runs alone")]
    [own] = board.placements
    assert said(held_by_others(candidate(board, demand(2), instead_of=own, **alone))) == []
    lone = board_on(with_pod(with_placement(seen(BESIDE), sharing=Sharing.EXCLUSIVE), sharing=Sharing.EXCLUSIVE))
    assert said(held_by_others(candidate(lone))) == [
        ("HeldByOthers", 1.0, 0.0, "replicas", "team/docs, which runs alone")
    ]


@pytest.mark.parametrize(
    ("wish", "pool", "found"),
    [
        (SharingWish.AUTO, {Sharing.MPS, Sharing.EXCLUSIVE}, Sharing.MPS),
        (SharingWish.AUTO, {Sharing.EXCLUSIVE}, Sharing.EXCLUSIVE),
        (SharingWish.MPS, {Sharing.EXCLUSIVE}, None),
        (SharingWish.EXCLUSIVE, {Sharing.MPS, Sharing.EXCLUSIVE}, Sharing.EXCLUSIVE),
    ],
)
def test_a_gpu_is_shared_as_the_serving_wishes_and_the_pool_allows(
    wish: SharingWish, pool: set[Sharing], found: Sharing | None
) -> None:
    observation = seen(NONE)
    policy = replace(observation.policy, sharing=frozenset(pool))
    assert sharing_of(replace(observation.servings[0], sharing=wish), policy) is found


@pytest.mark.parametrize(("left", "held"), [(0.0, False), (1.0, True)])
def test_a_gpu_on_which_it_could_not_start_is_tried_again_in_time(left: float, held: bool) -> None:
    board = board_on(seen(ONE))
    board.withdrawn[CHAT, A] = Withdrawn(serving=CHAT, gpu_uuid=A, until=Seconds(NOON + left))
    assert [(each[1], each[2]) for each in said(held_by_others(candidate(board)))] == ([(left, 0.0)] if held else [])


def test_a_pod_that_has_not_begun_explains_no_memory() -> None:
    waiting = with_pod(seen(ONE), phase=Phase.PENDING, ready_at=None)
    assert [each[3] for each in said(held_by_others(candidate(board_on(waiting))))] == ["bytes"]


@pytest.mark.parametrize(("gib", "held"), [(1.0, False), (1.01, True)])
def test_memory_that_nobody_explains_holds_a_gpu_above_the_limit_while_a_replica_is_wanted(
    gib: float, held: bool
) -> None:
    observation = seen(ONE)
    board = board_on(observation)
    [here] = board.facts.replicas_on[A]
    reading = observation.gpus[0].fb_used
    assert isinstance(reading, Reading)
    used = board.prospects.most_memory_of(board.kind(A), board.kin(here)) + gib * GIB
    gpus = (replace(observation.gpus[0], fb_used=replace(reading, value=used)), observation.gpus[1])
    board = board_on(replace(observation, gpus=gpus))
    assert bool(said(held_by_others(candidate(board)))) is held
    assert said(held_by_others(candidate(board, demand(1)))) == []


@pytest.mark.parametrize(("cause", "objects"), [("Stale", True), ("NotFinite", True), ("NoSeries", False)])
def test_a_reading_that_should_be_there_objects_and_one_that_nobody_exports_does_not(cause: str, objects: bool) -> None:
    for word in ("dramActive", "fbUsed"):
        board = board_on(seen(ONE.replace("a: ,", f"a: {{{word}: {cause}}},")))
        assert bool(said(data_missing(candidate(board)))) is objects
        assert said(data_missing(candidate(board, demand(5, floor=2)))) == []


def test_what_engines_do_together_is_not_asked_where_somebody_else_is_or_nobody_knows_one() -> None:
    observation = seen(TWO)
    policy = replace(observation.policy, least_marginal_gain=Ratio(9.0))
    observation = replace(observation, policy=policy)
    assert Reason.MARGINAL_GAIN in [each.reason for each in objections(candidate(board_on(observation)))]
    held = replace(observation, holders=(Holder(gpu_uuid=A, kind="Pod", name="x"),))
    assert [each.reason for each in objections(candidate(board_on(held)))] == [Reason.HELD_BY_OTHERS]
    beside = replace(seen(BESIDE), policy=policy)
    refused = Refused(key=DOCS, uid="docs", generation=1, field="spec", problem="unreadable", fix="mend it")
    unknown = replace(beside, servings=beside.servings[:1], refused=(refused,))
    found = [each.reason for each in objections(candidate(board_on(unknown)))]
    assert found == [Reason.DATA_MISSING]
    assert [each.reason for each in objections(candidate(board_on(replace(seen(NONE), policy=policy))))] == []


# What was undone, the limits, the load


def undone() -> Undone:
    return Undone(
        serving=CHAT, model="meta-llama/Llama-3.2-1B", gpu_kind="H100-80GB",
        neighbours="1 x meta-llama/Llama-3.2-1B", at=Seconds(NOON - 60.0), until=Seconds(NOON + 600.0),
        compared=Compared(what="gain", subject="GPU", predicted=0.5, measured=-0.1, unit="ratio"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "objects"),
    [
        (demand(2), True),
        (demand(1), False),
        (demand(0), False),
        (demand(2, floor=2), False),
        (demand(2, floor=1), True),
    ],
)
def test_what_was_taken_back_objects_to_what_the_load_asks_for_and_not_to_what_the_user_does(
    asked: Demand, objects: bool
) -> None:
    board = board_on(seen(ONE))
    board.undone = [undone()]
    assert said(rolled_back(candidate(board, asked))) == (
        [("RolledBack", -0.1, 0.5, "ratio", "gain")] if objects else []
    )
    assert all(each.at_least for each in rolled_back(candidate(board, asked)))


def test_a_latency_that_was_too_high_is_told_as_too_high() -> None:
    board = board_on(seen(ONE))
    compared = replace(undone().compared, predicted=0.01, measured=0.03, unit=Unit.SECONDS.value)
    board.undone = [replace(undone(), compared=compared)]
    assert [each.at_least for each in rolled_back(candidate(board))] == [False]


def test_the_largest_count_is_kept_and_one_set_by_hand_has_none() -> None:
    at_most = ONE.replace("batch: 64", "batch: 64, most: 1")
    assert said(max_replicas(candidate(board_on(seen(at_most))))) == [("MaxReplicas", 2.0, 1.0, "replicas", "")]
    assert said(max_replicas(candidate(board_on(seen(at_most.replace("most: 1", "most: 2")))))) == []
    by_hand = at_most.replace("most: 1", "most: 1, replicas: 3")
    assert said(max_replicas(candidate(board_on(seen(by_hand))))) == []


def test_a_load_that_is_met_is_told_by_its_utilization_or_by_what_counts_instead() -> None:
    board = board_on(seen(ONE))
    met = demand(1, utilization=0.5)
    assert said(demand_met(candidate(board, met))) == [("DemandMet", 0.5, 0.85, "ratio", "")]
    assert [each.at_least for each in demand_met(candidate(board, met))] == [True]
    for asked in (demand(1), demand(1, utilization=0.5, basis=Basis.CLOSED_LOOP)):
        assert said(demand_met(candidate(board, asked))) == [("DemandMet", 2.0, 1.0, "replicas", asked.basis.value)]
    assert said(demand_met(candidate(board, demand(2)))) == []


# Memory and cores, to the byte


def on_a_gpu_of(observation: Observation, size: float, reserve: int) -> Observation:
    """The same on GPUs that have so many times the bytes of one engine."""
    total = board_on(observation).memory_of(observation.replicas[0], A)
    gpus = tuple(
        replace(each, gpu=replace(each.gpu, kind=replace(each.gpu.kind, memory_bytes=Bytes(round(total * size)))))
        for each in observation.gpus
    )
    return replace(observation, gpus=gpus, policy=replace(observation.policy, gpu_reserve=Bytes(reserve)))


@pytest.mark.parametrize(
    ("size", "reserve", "fits"),
    [(4.0, 0, True), (4.0, GIB, True), (3.0, 0, False), (3.028, 0, False), (3.031, 0, True), (3.031, GIB, False)],
)
def test_all_engines_fit_with_the_reserve_and_the_start_of_the_last(size: float, reserve: int, fits: bool) -> None:
    assert (said(memory(candidate(board_on(on_a_gpu_of(seen(TWO), size, reserve))))) == []) is fits


@pytest.mark.parametrize(("reserve", "fits"), [(0, True), (1, False)])
def test_a_gpu_may_be_filled_to_the_byte(reserve: int, fits: bool) -> None:
    exact = on_a_gpu_of(seen(ONE), 2.0, reserve)
    assert (said(memory(candidate(board_on(exact)))) == []) is fits
    assert (surveyed(replace(exact, gpus=exact.gpus[:1]), demand(2)).uuid == A) is fits


def test_one_in_the_place_of_another_needs_its_room_once() -> None:
    board = board_on(on_a_gpu_of(seen(TWO), 2.1, 0))
    assert said(memory(candidate(board))) != []
    assert said(memory(candidate(board, instead_of=board.placements[0]))) == []
    assert len(candidate(board, instead_of=board.placements[0]).present) == 1
    assert [count for _, count in candidate(board, instead_of=board.placements[0]).before] == [1]


def test_where_nobody_exports_the_framebuffer_one_replica_has_the_gpu() -> None:
    board = board_on(seen(ONE.replace("a: ,", "a: {fbUsed: NoSeries},")))
    assert said(memory(candidate(board))) == [
        ("Memory", 2.0, 1.0, "replicas", "nothing exports the framebuffer in use")
    ]
    assert said(memory(candidate(board_on(seen(NONE.replace("a: ,", "a: {fbUsed: NoSeries},")))))) == []
    assert said(memory(candidate(board_on(seen(ONE.replace("a: ,", "a: {fbUsed: Stale},")))))) == []
    alone = candidate(board, sharing=Sharing.EXCLUSIVE)
    assert said(memory(alone)) == [], "one alone has it in any case, and that is said elsewhere"


@pytest.mark.parametrize(("cores", "others", "fits"), [(4.0, 0.0, True), (3.9, 0.0, False), (6.0, 2.1, False)])
def test_cores_are_counted_beside_those_of_others(cores: float, others: float, fits: bool) -> None:
    observation = seen(ONE)
    nodes = tuple(replace(each, cpu_cores=cores, cpu_cores_of_others=others) for each in observation.nodes)
    assert (said(host_cpu(candidate(board_on(replace(observation, nodes=nodes))))) == []) is fits
    assert said(host_cpu(candidate(board_on(replace(observation, nodes=()))))) == []
    half = replace(
        seen(NONE.replace("batch: 64", "batch: 64, cpu_cores: 1")), nodes=(replace(nodes[0], cpu_cores=0.5),)
    )
    assert said(host_cpu(candidate(board_on(replace(half, nodes=(replace(half.nodes[0], cpu_cores_of_others=0.0),))))))


# Promises


def predicted(board: Board, rates: dict[ServingKey, float]) -> Any:
    """The group of docs before chat has come, and after."""
    board.rates.update(rates)
    of = candidate(board)
    after = board.prospects.at_rates(of.gpu.gpu.kind, of.after, rates_on(board, of.after, of.kin))
    before = board.prospects.at_rates(of.gpu.gpu.kind, of.before, rates_on(board, of.before, None))
    [now] = [group for (kin, _), group in zip(of.after, after.groups, strict=True) if kin.serving == DOCS]
    return before.groups[0], now


def slo(itl: float | None = None, ttft: float | None = None, statistic: Statistic = Statistic.P95) -> Slo:
    return Slo(
        itl=None if itl is None else Seconds(itl), ttft=None if ttft is None else Seconds(ttft), statistic=statistic
    )


def promised(of: Slo | None, rates: dict[ServingKey, float], name: str = "docs") -> list[Verdict]:
    board = board_on(servings(servings(seen(BESIDE), "chat", slo=slo(9.0)), name, slo=of))
    board.rates.update(rates)
    return [each for each in latency_slo(candidate(board)) if each.subject == f"team/{name}"]


def test_a_gap_between_tokens_may_be_as_long_as_was_promised_and_no_longer() -> None:
    _, now = predicted(board_on(seen(BESIDE)), {})
    assert promised(slo(now.itl_p95), {}) == []
    [broken] = promised(slo(now.itl_p95 * 0.999), {})
    assert (broken.detail, broken.unit, broken.observed.value) == ("inter-token latency", Unit.SECONDS, now.itl_p95)
    assert broken.limit.source is Source.MEASURED
    assert promised(slo(), {}) == []


def test_what_nobody_promised_is_judged_by_what_was_assumed_and_without_that_by_nothing() -> None:
    observation = servings(seen(BESIDE), "docs", slo=None)
    assert observation.plan is not None

    def found(of: Slo | None) -> list[Verdict]:
        assert observation.plan is not None
        shapes = tuple(replace(each, slo=of if each.serving == DOCS else slo(9.0)) for each in observation.plan.shapes)
        board = board_on(replace(observation, plan=replace(observation.plan, shapes=shapes)))
        return [each for each in latency_slo(candidate(board)) if each.subject == "team/docs"]

    [assumed] = found(replace(slo(1e-6), assumed=True))
    assert assumed.limit.source is Source.ASSUMED
    assert found(None) == []


def test_a_first_token_may_come_as_late_as_promised_and_later_only_if_it_did_before() -> None:
    rates = {DOCS: 10.0, CHAT: 10.0}
    before, now = predicted(board_on(seen(BESIDE)), rates)
    assert before.ttft_p95 < now.ttft_p95
    assert promised(slo(ttft=now.ttft_p95), rates) == []
    [broken] = promised(slo(ttft=before.ttft_p95), rates)
    assert (broken.detail, broken.unit) == ("time to first token", Unit.SECONDS)
    assert promised(slo(ttft=before.ttft_p95), {CHAT: 10.0}) == []


def test_a_load_that_the_neighbour_cannot_carry_any_more_objects_and_one_that_it_never_could_does_not() -> None:
    capacity = board_on(seen(BESIDE))
    kind, own = capacity.kind(A), capacity.mix(A)
    lone = capacity.prospects.finish_rate(kind, own, DOCS)
    beside = candidate(capacity)
    shared = capacity.prospects.finish_rate(kind, beside.after, DOCS)
    between = (lone + shared) / 2
    [overloaded] = promised(slo(ttft=1.0), {DOCS: between, CHAT: between})
    assert (overloaded.unit, overloaded.limit.value, overloaded.detail) == (Unit.RATIO, 1.0, "time to first token")
    assert overloaded.observed.value > 1.0
    assert promised(slo(ttft=1.0), {DOCS: 2 * lone, CHAT: between}) == []


def test_a_load_of_its_own_that_cannot_be_carried_is_why_one_more_is_asked_for() -> None:
    assert promised(slo(ttft=1.0), {DOCS: 1.0, CHAT: 1e4}, "chat") == []
    [late] = promised(slo(ttft=1e-6), {DOCS: 1.0, CHAT: 1.0}, "chat")
    assert late.detail == "time to first token"


def test_a_promise_in_each_statistic_is_held_against_that_statistic() -> None:
    _, group = predicted(board_on(seen(BESIDE)), {DOCS: 10.0, CHAT: 10.0})
    for statistic, itl, ttft in (
        (Statistic.P95, group.itl_p95, group.ttft_p95),
        (Statistic.MEAN, group.itl_mean, group.ttft_mean),
        (Statistic.P99, group.itl_p99, group.ttft_p99),
    ):
        asked = slo(1.0, 1.0, statistic)
        assert (itl_of(group, asked), ttft_of(group, asked)) == (itl, ttft)


def test_a_first_token_that_comes_too_late_is_no_objection_to_a_replica_that_makes_it_come_sooner() -> None:
    board = board_on(servings(seen(ONE), "chat", slo=slo(ttft=1e-6)))
    lone = board.prospects.finish_rate(board.kind(A), board.mix(A), CHAT)
    board.rates[CHAT] = 0.97 * lone
    assert [each.reason for each in latency_slo(candidate(board))] == []
    idle = board_on(servings(seen(ONE), "chat", slo=slo(ttft=1e-6)))
    idle.rates[CHAT] = 0.01 * lone
    assert [each.reason for each in latency_slo(candidate(idle))] == [Reason.LATENCY_SLO]


def test_arrivals_are_dealt_over_the_engines_of_a_serving_and_those_of_others_stay() -> None:
    board = board_on(seen(BESIDE.replace("[", "[{serving: chat, gpu: b}, ")))
    board.rates.update({CHAT: 30.0, DOCS: 30.0})
    of = candidate(board)
    assert rates_on(board, of.after, of.kin) == (pytest.approx(15.0, rel=0.025), pytest.approx(30.0, rel=0.025))
    assert rates_on(board, of.after, None) == (pytest.approx(30.0, rel=0.025), pytest.approx(30.0, rel=0.025))


def test_whose_promise_is_asked_for_is_the_users_or_the_assumed_one() -> None:
    board = board_on(servings(seen(ONE), "chat", slo=slo(0.5)))
    assert promise_of(board, CHAT, board.kind(A)) == slo(0.5)
    board = board_on(servings(seen(ONE), "chat", slo=None))
    chosen = board.chosen(CHAT, A)
    assert chosen is not None
    assert promise_of(board, CHAT, board.kind(A)) == chosen.slo
    assert promise_of(board, key("gone"), board.kind(A)) is None


# Saturation


def full(dram_active: float | None, *, running: float = 64.0, engines: int = 2) -> Observation:
    """Engines that run so many requests of 64 each, and what the counter says."""
    observation = seen(TWO.replace("count: 2", f"count: {engines}, running: {running}"))
    reading: Any = Missing(cause=Cause.NO_SERIES, origin="dcgm")
    if dram_active is not None:
        reading = Reading(value=dram_active, at=NOON, origin="dcgm")
    return replace(observation, gpus=tuple(replace(each, dram_active=reading) for each in observation.gpus))


def test_saturation_is_measured_where_the_engines_are_full_and_predicted_elsewhere() -> None:
    board = board_on(full(0.5))
    model = board.prospects.full(board.kind(A), board.mix(A))
    measured, ceiling = saturation_of(board, A)
    assert measured.source is Source.MEASURED
    assert (measured.value, ceiling) == (pytest.approx(0.5 / model.dram_active_max), 0.90)
    half, ceiling = saturation_of(board_on(full(0.5, running=30.0)), A)
    assert (half.value, ceiling) == (model.saturation, 0.90)
    unmeasured, ceiling = saturation_of(board_on(full(None)), A)
    assert (unmeasured.value, ceiling) == (model.saturation, 0.80)


@pytest.mark.parametrize(("factor", "believed"), [(0.49, False), (0.51, True), (1.0, True), (1.4, True)])
def test_a_counter_that_is_off_by_more_than_twice_is_on_another_scale(factor: float, believed: bool) -> None:
    board = board_on(full(0.5))
    model = board.prospects.full(board.kind(A), board.mix(A)).dram_active
    found, ceiling = saturation_of(board_on(full(factor * model)), A)
    assert (found.source is Source.MEASURED) is believed
    assert ceiling == (0.90 if believed else 0.80)


def test_a_counter_at_its_end_is_saturated_and_one_beyond_it_is_not_believed() -> None:
    assert saturation_of(board_on(full(1.0, engines=4)), A)[0].value == 1.0
    assert saturation_of(board_on(full(1.0, engines=4)), A)[1] == 0.90
    assert saturation_of(board_on(full(1.01, engines=4)), A)[1] == 0.80


def test_full_is_over_the_shortest_window_and_of_every_engine() -> None:
    observation = full(0.5)
    first, second = observation.engines
    idle = replace(second.windows[0], running_mean=Reading(value=10.0, at=NOON, origin="vllm"))
    unread = replace(idle, running_mean=Missing(cause=Cause.STALE, origin="vllm"))
    for windows, is_full in (
        ((second.windows[0], idle), True), ((idle, second.windows[1]), False), ((), False),
        ((unread, second.windows[1]), False),
    ):  # fmt: skip
        engines = (first, replace(second, windows=windows, running=first.running))
        found, _ = saturation_of(board_on(replace(observation, engines=engines)), A)
        assert (found.source is Source.MEASURED) is is_full
    found, _ = saturation_of(board_on(replace(observation, engines=(first,))), A)
    assert found.source is not Source.MEASURED


def test_at_the_ceiling_is_saturated() -> None:
    observation = full(0.5, running=30.0)
    board = board_on(observation)
    saturation = board.prospects.full(board.kind(A), board.mix(A)).saturation
    for ceiling, objects in ((saturation, True), (saturation + 1e-6, False)):
        policy = replace(observation.policy, saturation_ceiling=Ratio(ceiling))
        assert bool(said(bandwidth_ceiling(candidate(board_on(replace(observation, policy=policy)))))) is objects


def test_a_gain_that_is_just_enough_is_enough() -> None:
    observation = seen(TWO)
    board = board_on(observation)
    of = candidate(board)
    kind = board.kind(A)
    gain = board.prospects.worth(kind, of.after) / board.prospects.worth(kind, of.before) - 1.0
    for least, objects in ((gain, False), (gain + 1e-6, True)):
        policy = replace(observation.policy, least_marginal_gain=Ratio(least))
        found = said(marginal_gain(candidate(board_on(replace(observation, policy=policy)))))
        assert [each[1] for each in found] == ([pytest.approx(gain)] if objects else [])
    assert all(each.at_least for each in marginal_gain(candidate(board_on(replace(observation, policy=policy)))))


# Which GPU


def surveyed(observation: Observation, asked: Demand, sharing: Sharing = Sharing.MPS, *touched: str) -> Any:
    board = board_on(observation)
    board.touched.update(touched)
    return survey(board, board.facts.servings[CHAT], sharing, asked)


def test_the_emptiest_gpu_in_use_is_taken_and_another_one_only_if_none_of_them_takes_it() -> None:
    spread = "gpus: {a: , b: , c: }\nservings: {chat: {batch: 64}}\nreplicas:\n" \
        "  - {serving: chat, gpu: a, count: 2}\n  - {serving: chat, gpu: b}"  # fmt: skip
    assert surveyed(seen(spread), demand(4)).uuid == B
    held = replace(seen(ONE), holders=(Holder(gpu_uuid=A, kind="Pod", name="x"),))
    assert surveyed(held, demand(2)).uuid == B
    only = replace(held, policy=replace(held.policy, max_gpus=1))
    assert (surveyed(only, demand(2)).uuid, surveyed(only, demand(2)).stop.reason) == (None, Reason.HELD_BY_OTHERS)
    assert surveyed(replace(held, policy=replace(held.policy, max_gpus=2)), demand(2)).uuid == B


def test_of_equal_gpus_the_first_by_name_is_taken_and_what_was_not_needed_is_not_looked_at() -> None:
    equal = "gpus: {a: , b: , c: }\nservings: {chat: {batch: 64}}\nreplicas:\n" \
        "  - {serving: chat, gpu: a}\n  - {serving: chat, gpu: b}"  # fmt: skip
    observation = seen(equal)
    held = replace(observation, holders=(Holder(gpu_uuid=observation.gpus[2].gpu.uuid, kind="Pod", name="x"),))
    found = surveyed(held, demand(3))
    assert (found.uuid, found.waiting, found.verdicts) == (A, False, ())


def test_below_the_floor_a_gpu_at_rest_is_better_than_an_emptier_one_that_moves() -> None:
    both = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas:\n" \
        "  - {serving: chat, gpu: a, phase: Starting}\n  - {serving: chat, gpu: b, count: 2}"  # fmt: skip
    assert surveyed(seen(both), demand(5, floor=5)).uuid == B


def test_a_kind_of_gpu_that_keeps_the_promise_is_opened_before_one_that_cannot() -> None:
    observation = seen("gpus: {a: {kind: L4}, b: , c: }\nservings: {chat: {batch: 64}}")
    assert observation.plan is not None
    assert surveyed(observation, demand(1)).uuid == A
    shapes = tuple(
        replace(each, unreachable=Seconds(0.1) if each.gpu_kind == "L4" else None) for each in observation.plan.shapes
    )
    slow = replace(observation, plan=replace(observation.plan, shapes=shapes))
    assert surveyed(slow, demand(1)).uuid == B


def beside(there: str, *, kind: str = "L4", **asked: int) -> list[tuple[str, float, float, str, str]]:
    """What speaks against a replica on the first GPU, of that kind, with one that serves on `there`."""
    text = f"gpus: {{a: {{kind: {kind}}}, b: , c: {{kind: L4}}}}\nservings: {{chat: {{batch: 64}}}}\n"
    known = board_on(seen(f"{text}replicas: [{{serving: chat, gpu: {there}, engine: }}]"))
    return said(objections(candidate(known, demand(2, **asked))))


def test_a_much_slower_gpu_is_not_taken_where_its_even_share_of_the_requests_would_hold_all_back() -> None:
    [(reason, share, least, unit, kind)] = beside("b")
    assert (reason, least, unit, kind) == ("MarginalGain", 1.05, "ratio", "L4")
    text = "gpus: {a: {kind: L4}, b: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: b, engine: }]"
    known = board_on(seen(text))

    def alone(uuid: str) -> float:
        chosen = known.chosen(CHAT, uuid)
        assert chosen is not None
        mix = ((known.prospects.kin(CHAT, chosen.shape), 1),)
        return known.prospects.finish_rate(known.facts.gpus[uuid].gpu.kind, mix, CHAT)

    assert share == pytest.approx(2 * alone(A) / alone(B))
    assert share < 1.0


def test_an_even_share_is_a_matter_of_further_replicas_and_of_engines_that_are_known() -> None:
    text = """gpus: {a: {kind: L4}, b: }
servings: {chat: {batch: 64}, docs: {batch: 64}}
replicas: [{serving: chat, gpu: b, engine: }, {serving: docs, gpu: %s, engine: }]"""
    elsewhere, here = seen(text % "b"), seen(text % "a")
    known = board_on(here)
    (placement,) = known.of[CHAT]
    [against] = even_share(candidate(known))
    assert against.at_least
    assert list(even_share(candidate(known, instead_of=placement))) == []
    refused = Refused(key=DOCS, uid="docs", generation=1, field="spec", problem="unreadable", fix="mend it")
    for observation in (elsewhere, here):
        unknown = replace(observation, servings=observation.servings[:1], refused=(refused,))
        assert list(even_share(candidate(board_on(unknown)))) == []


def test_it_is_taken_where_that_many_are_asked_for_or_where_nothing_quicker_serves() -> None:
    assert beside("b", floor=2) == []
    assert beside("c") == []
    assert beside("c", kind="H100-80GB") == [], "two of the slower one's share are still more than one"


def test_a_kind_of_gpu_without_a_shape_is_passed_over() -> None:
    observation = seen("gpus: {a: {kind: L4}, b: }\nservings: {chat: {batch: 64}}")
    assert observation.plan is not None
    shapes = tuple(each for each in observation.plan.shapes if each.gpu_kind != "L4")
    assert surveyed(replace(observation, plan=replace(observation.plan, shapes=shapes)), demand(1)).uuid == B


def test_a_gpu_that_is_busy_is_waited_for_by_what_answers_the_load() -> None:
    starting = with_pod(seen(ONE.replace("b: ", "b: {nodeReady: false}")), phase=Phase.STARTING, ready_at=None)
    waits = surveyed(starting, demand(2))
    assert (waits.uuid, waits.waiting, waits.next_on, waits.stop) == (None, True, None, None)
    asked = surveyed(starting, demand(2, floor=2))
    assert (asked.uuid, asked.waiting) == (A, False)
    next_tick = surveyed(starting, demand(2, floor=2), Sharing.MPS, A)
    assert (next_tick.uuid, next_tick.waiting, next_tick.next_on) == (None, True, A)
    at_the_floor = surveyed(starting, demand(2, floor=1), Sharing.MPS, A)
    assert at_the_floor.next_on is None


def test_a_manual_count_goes_past_what_is_only_predicted_and_says_so() -> None:
    observation = replace(seen(TWO.replace("batch: 64", "batch: 64, replicas: 3")), gpus=seen(TWO).gpus[:1])
    observation = replace(observation, policy=replace(observation.policy, least_marginal_gain=Ratio(9.0)))
    found = surveyed(observation, demand(3))
    assert (found.uuid, [each.reason for each in found.past]) == (A, [Reason.MARGINAL_GAIN])
    automatic = replace(observation, servings=seen(TWO).servings)
    stopped = surveyed(automatic, demand(3))
    assert (stopped.uuid, stopped.stop.reason) == (None, Reason.MARGINAL_GAIN)


def test_a_manual_count_takes_a_gpu_that_it_need_not_go_past_first() -> None:
    observation = seen(TWO.replace("batch: 64", "batch: 64, replicas: 3"))
    observation = replace(observation, policy=replace(observation.policy, least_marginal_gain=Ratio(9.0)))
    found = surveyed(observation, demand(3))
    assert (found.uuid, found.past) == (B, ())


def test_the_reason_is_that_of_the_gpu_that_came_closest() -> None:
    held = replace(seen(ONE), holders=(Holder(gpu_uuid=A, kind="Pod", name="x"),))
    nodes = tuple(replace(each, cpu_cores=2.0) for each in held.nodes)
    assert surveyed(replace(held, nodes=nodes), demand(2)).stop.reason is Reason.HOST_CPU
    unused = "gpus: {a: {heldBy: Pod x}, b: {node: node-1, coresOfOthers: 64}}\nservings: {chat: {batch: 64}}"
    assert surveyed(seen(unused), demand(1)).stop.reason is Reason.HOST_CPU
    swapped = "gpus: {a: {node: node-1, coresOfOthers: 64}, b: {heldBy: Pod x}}\nservings: {chat: {batch: 64}}"
    assert surveyed(seen(swapped), demand(1)).stop.reason is Reason.HOST_CPU


def crowded(door: str) -> Observation:
    """Nine GPUs in use by others, the first eight by name closed to chat in one way, and the last one open."""
    names = "abcdefghi"
    gpus = ", ".join(f"{name}: {{node: node-{name}}}" for name in names)
    pods = "\n".join(f"  - {{serving: docs, gpu: {name}}}" for name in names)
    observation = seen(f"gpus: {{{gpus}}}\nservings: {{chat: {{batch: 64}}, docs: {{batch: 64}}}}\nreplicas:\n{pods}")
    closed = [each.gpu.uuid for each in observation.gpus[:8]]
    match door:
        case "others":
            return replace(observation, holders=tuple(Holder(gpu_uuid=each, kind="Pod", name="x") for each in closed))
        case "node":
            gpus_ = tuple(replace(each, node_ready=each.gpu.uuid not in closed) for each in observation.gpus)
            return replace(observation, gpus=gpus_)
        case "memory":
            small = Bytes(8 * GIB)
            gpus_ = tuple(
                replace(each, gpu=replace(each.gpu, kind=replace(each.gpu.kind, memory_bytes=small)))
                if each.gpu.uuid in closed
                else each
                for each in observation.gpus
            )
            return replace(observation, gpus=gpus_)
        case "namespace":
            claims = tuple(
                replace(each, namespace="other") if each.gpu_uuid in closed else each for each in observation.claims
            )
            return replace(observation, claims=claims)
        case "framebuffer":
            unread = Missing(cause=Cause.NO_SERIES, origin="dcgm")
            gpus_ = tuple(
                replace(each, fb_used=unread) if each.gpu.uuid in closed else each for each in observation.gpus
            )
            return replace(observation, gpus=gpus_)
        case _:
            return observation


@pytest.mark.parametrize("door", ["others", "node", "memory", "namespace", "framebuffer"])
def test_gpus_that_are_closed_to_a_serving_do_not_hide_one_that_is_open(door: str) -> None:
    observation = crowded(door)
    found = surveyed(observation, demand(1))
    assert found.uuid == observation.gpus[8].gpu.uuid
    assert len({each.subject for each in found.verdicts}) <= 2


def test_gpus_that_are_full_or_in_use_are_told_of_two_at_a_time_to_one_that_needs_another() -> None:
    observation = crowded("none")
    free = observation.gpus[8].gpu.uuid
    assert observation.plan is not None
    ninth_is_free = replace(
        observation,
        replicas=tuple(each for each in observation.replicas if each.gpu_uuid != free),
        plan=replace(
            observation.plan, placements=tuple(each for each in observation.plan.placements if each.gpu_uuid != free)
        ),
        claims=tuple(each for each in observation.claims if each.gpu_uuid != free),
        gpus=(*observation.gpus[:8], replace(observation.gpus[8], fb_used=Reading(value=0.0, at=NOON, origin="dcgm"))),
    )
    alone = surveyed(ninth_is_free, demand(1), Sharing.EXCLUSIVE)
    assert (alone.uuid, len({each.subject for each in alone.verdicts})) == (free, 2)
    low = replace(ninth_is_free, policy=replace(ninth_is_free.policy, saturation_ceiling=Ratio(0.01)))
    full_ = surveyed(low, demand(1))
    assert (full_.uuid, len({each.subject for each in full_.verdicts})) == (free, 2)
    by_hand = servings(low, "chat", scaling=replace(low.servings[0].scaling, mode=ScalingMode.MANUAL))
    assert len({each.subject for each in surveyed(by_hand, demand(1)).verdicts}) > 2


# What a manual count stands against


def past(observation: Observation, **policy: Any) -> tuple[Reason, ...]:
    board = board_on(replace(observation, policy=replace(observation.policy, **policy)))
    return went_past(board, board.facts.servings[CHAT])


def test_what_the_last_replica_of_a_gpu_goes_past_is_told_in_order() -> None:
    observation = seen(TWO)
    board = board_on(observation)
    kind, after = board.kind(A), board.mix(A)
    [(own, _)] = after
    before = board.prospects.full(kind, ((own, 1),))
    gain = board.prospects.worth(kind, after) / board.prospects.worth(kind, ((own, 1),)) - 1.0
    assert past(observation) == ()
    assert past(observation, saturation_ceiling=Ratio(before.saturation)) == (Reason.BANDWIDTH_CEILING,)
    assert past(observation, saturation_ceiling=Ratio(before.saturation + 1e-6)) == ()
    assert past(observation, least_marginal_gain=Ratio(gain)) == ()
    assert past(observation, least_marginal_gain=Ratio(gain + 1e-6)) == (Reason.MARGINAL_GAIN,)
    slow = servings(observation, "chat", slo=slo(1e-6))
    assert past(slow, least_marginal_gain=Ratio(9.0)) == (Reason.LATENCY_SLO, Reason.MARGINAL_GAIN)
    assert past(seen(ONE), least_marginal_gain=Ratio(9.0)) == ()
    gone = replace(observation, gpus=observation.gpus[1:])
    assert past(gone, least_marginal_gain=Ratio(9.0)) == ()


def test_a_neighbour_that_never_had_a_promise_is_not_gone_past() -> None:
    both = seen(BESIDE.replace("[", "[{serving: chat, gpu: a}, "))
    assert Reason.LATENCY_SLO in past(servings(both, "docs", slo=slo(1e-6)))
    assert Reason.LATENCY_SLO not in past(servings(both, "docs", slo=slo(ttft=1.0)))


# What a replica brings


def test_what_the_last_replica_adds_is_held_against_the_gpu_without_it() -> None:
    board = board_on(seen(TWO))
    kind, after = board.kind(A), board.mix(A)
    [(own, _)] = after
    one, two = board.prospects.full(kind, ((own, 1),)), board.prospects.full(kind, after)
    last = board.placements[-1]
    gain = gain_of(board, last)
    assert gain == pytest.approx(two.total_tokens_per_second / one.total_tokens_per_second - 1.0)
    brings = effect(board, last)
    assert brings is not None
    assert brings.tokens_per_second_before == one.total_tokens_per_second
    assert brings.tokens_per_second_after == two.total_tokens_per_second
    assert (brings.saturation_after, brings.attainable) == (two.saturation, two.dram_active_max)
    assert brings.itl_after == two.groups[0].itl_p95


def test_the_first_replica_of_a_gpu_brings_everything_and_gains_on_nothing() -> None:
    board = board_on(servings(seen(ONE), "chat", slo=slo(1.0, statistic=Statistic.MEAN)))
    [only] = board.placements
    brings = effect(board, only)
    assert brings is not None
    assert (gain_of(board, only), brings.tokens_per_second_before) == (None, 0.0)
    lone = board.prospects.full(board.kind(A), board.mix(A))
    assert brings.itl_after == lone.groups[0].itl_mean


def test_of_an_engine_nobody_knows_or_on_a_gpu_that_is_gone_nothing_is_predicted() -> None:
    observation = seen(BESIDE.replace("[", "[{serving: chat, gpu: a}, "))
    refused = Refused(key=DOCS, uid="docs", generation=1, field="spec", problem="unreadable", fix="mend it")
    for world in (
        replace(observation, servings=observation.servings[:1], refused=(refused,)),
        replace(observation, gpus=observation.gpus[1:]),
    ):
        board = board_on(world)
        own = board.of[CHAT][0]
        assert (gain_of(board, own), effect(board, own)) == (None, None)
        assert went_past(board, board.facts.servings[CHAT]) == ()


def test_among_others_the_effect_tells_the_latency_of_its_own_engines() -> None:
    board = board_on(servings(seen(BESIDE.replace("[", "[{serving: chat, gpu: a}, ")), "docs", slo=slo(1.0)))
    brings = effect(board, board.of[DOCS][0])
    full_ = board.prospects.full(board.kind(A), board.mix(A))
    assert brings is not None
    [own] = [group for (kin, _), group in zip(board.mix(A), full_.groups, strict=True) if kin.serving == DOCS]
    assert brings.itl_after == own.itl_p95
