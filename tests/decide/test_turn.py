"""One serving's turn: what is said of it, what stays said, and what waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupack.decide.demand import Basis, Demand
from gpupack.decide.experiment import TakenBack
from gpupack.decide.hold import GivenUp
from gpupack.decide.recording import Decision
from gpupack.decide.turn import CALMER, appraised, take_turn
from gpupack.facts.experiment import Compared, Undone
from gpupack.facts.observation import Observation, Phase, Trouble
from gpupack.facts.placement import Lesson, Record
from gpupack.facts.policy import Policy
from gpupack.facts.running import Appraisal, Better, EngineFound
from gpupack.facts.serving import Shape
from gpupack.plan import Reason, Unit
from gpupack.units import Bytes, Ratio, Seconds

from ..strategies import NOON, key, serving
from .boards import A, B, board_on, demand, seen, with_pod, without_pod
from .test_judging import STEP

CHAT = key("chat")
ONE = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a}]"
TARGET = Policy().target_utilization


def record(reason: str, **fields: Any) -> Record:
    given: dict[str, Any] = {
        "subject": A, "observed": 0.0, "limit": 0.0, "unit": "", "at_least": False, "wanted": 2, "planned": 1,
        "message": "what was said", "at": Seconds(NOON - 900.0), **fields,
    }  # fmt: skip
    return Record(serving=CHAT, reason=reason, **given)


def turn(
    observation: Observation, wanted: Demand, was: Record | None = None, *, given_up: tuple[GivenUp, ...] = (),
    taken_back: tuple[TakenBack, ...] = (),
) -> Decision | None:  # fmt: skip
    board = board_on(observation)
    return take_turn(board, board.facts.servings[CHAT], wanted, was, given_up, taken_back, [])


def reason(text: str, wanted: Demand, was: Record | None = None) -> str | None:
    said = turn(seen(text), wanted, was)
    return None if said is None else str(said.reason)


# What stays said while a load is met by little


@pytest.mark.parametrize(
    ("utilization", "kept"), [(None, False), (0.5, False), (CALMER * TARGET, False), (0.8, True), (1.5, True)]
)
def test_what_was_in_the_way_stays_told_until_the_load_is_met_by_a_tenth(utilization: float | None, kept: bool) -> None:
    met = demand(1, utilization=utilization, rate=10.0)
    assert (reason(ONE, met, record("BandwidthCeiling")) is None) is kept


@pytest.mark.parametrize(
    ("was", "kept"),
    [
        (record("Memory"), True),
        (record("DemandMet"), False),
        (record("Added"), False),
        (record("Memory", planned=2), False),
        (record("Memory", wanted=1), False),
    ],
)
def test_only_what_stood_in_the_way_of_the_same_replicas_stays_told(was: Record, kept: bool) -> None:
    assert (reason(ONE, demand(1, utilization=0.8, rate=10.0), was) is None) is kept


NO_CORES = "gpus: {a: {coresOfOthers: 64}}\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a%s}]"


def test_what_is_in_the_way_now_is_told_however_near_the_load_is() -> None:
    again = demand(2, utilization=0.9, rate=10.0)
    assert reason(NO_CORES % "", again, record("BandwidthCeiling")) == Reason.HOST_CPU


# Of several objections


FULL_AND_NO_CORES = """gpus: {a: {coresOfOthers: 64}, b: {node: node-1, dramActive: 0.9}}
servings: {chat: {batch: 64}}
replicas: [{serving: chat, gpu: a}, {serving: chat, gpu: b, count: 4}]"""


@pytest.mark.parametrize(
    ("was", "told"),
    [
        (None, (Reason.BANDWIDTH_CEILING, B)),
        (record("MarginalGain", subject=B), (Reason.MARGINAL_GAIN, B)),
        (record("MarginalGain", subject=A), (Reason.BANDWIDTH_CEILING, B)),
        (record("HostCpu", subject=A), (Reason.BANDWIDTH_CEILING, B)),
    ],
)
def test_of_what_the_model_predicts_the_objection_that_was_told_stays_while_it_stands(
    was: Record | None, told: tuple[str, str]
) -> None:
    said = turn(seen(FULL_AND_NO_CORES), demand(6), was)
    assert said is not None
    assert (said.reason, said.subject) == told


def test_what_is_no_prediction_is_told_at_once() -> None:
    full = "gpus: {a: {coresOfOthers: 64, dramActive: 0.9}}\nservings: {chat: {batch: 64}}\n" + (
        "replicas: [{serving: chat, gpu: a, count: 4}]"
    )
    assert reason(full, demand(5), record("BandwidthCeiling", planned=4)) == Reason.HOST_CPU


# What waits


STARTING = """gpus: {a: , b: , c: }
servings: {chat: {batch: 64}}
replicas: [{serving: chat, gpu: a}, {serving: chat, gpu: b, phase: Starting}]"""


@pytest.mark.parametrize(
    ("basis", "floor", "added"),
    [
        (Basis.ARRIVALS, 1, False), (Basis.ARRIVALS, 2, False), (Basis.ARRIVALS, 3, True),
        (Basis.CLOSED_LOOP, 1, False), (Basis.DECLARED, 1, True), (Basis.MANUAL, 1, True),
    ],
)  # fmt: skip
def test_what_answers_the_load_waits_for_all_before_it_and_what_was_asked_for_from_the_start_does_not(
    basis: Basis, floor: int, added: bool
) -> None:
    said = turn(seen(STARTING), demand(3, floor=floor, basis=basis), record("Added", planned=2))
    assert (said is not None and said.reason == "Added") is added


def test_while_a_replica_starts_that_the_load_is_met_is_no_news() -> None:
    assert reason(STARTING, demand(2), record("Added", planned=2)) is None
    assert reason(STARTING, demand(2)) == Reason.DEMAND_MET


def test_while_a_replica_starts_what_is_in_the_way_of_the_next_one_is_told() -> None:
    assert reason(NO_CORES % ", phase: Starting", demand(2), record("Added")) == Reason.HOST_CPU


def test_room_of_a_replica_that_waits_for_the_next_tick_is_nobody_elses_in_this_one() -> None:
    text = "gpus: {a: }\nservings: {chat: {batch: 64, least: 2}}\nreplicas: [{serving: chat, gpu: a}]"
    board = board_on(seen(text))
    board.touched.add(A)
    take_turn(board, board.facts.servings[CHAT], demand(2, floor=2), record("Added"), (), (), [])
    assert len(board.on[A]) == 2
    board.release()
    assert len(board.on[A]) == 1


# What is said of one more, and of one less


TINY = "gpus: {a: {kind: L4%s}}\nservings: {chat: {batch: 64, model: llama-2-13b}%s}\nreplicas: [%s]"


def test_a_model_that_no_gpu_holds_is_told_what_to_change_and_one_that_neighbours_keep_out_is_not() -> None:
    alone = turn(seen(TINY % ("", "", "")), demand())
    assert alone is not None
    assert (alone.reason, "Not even one fits" in alone.message) == (Reason.MEMORY, True)
    docs = ", docs: {batch: 64}"
    beside = turn(seen(TINY % ("", docs, "{serving: docs, gpu: a}")), demand())
    assert beside is not None
    assert (beside.reason, "Not even one fits" in beside.message) == (Reason.MEMORY, False)
    cores = turn(seen(TINY.replace("llama-2-13b", "llama-3.2-1b") % (", coresOfOthers: 64", "", "")), demand())
    assert cores is not None
    assert (cores.reason, "Not even one fits" in cores.message) == (Reason.HOST_CPU, False)


def test_what_is_full_of_its_own_engines_is_not_too_small_for_one() -> None:
    many = "gpus: {a: {kind: L4}}\nservings: {chat: {batch: 64, model: qwen3-4b}}\nreplicas: [{serving: chat, gpu: a}]"
    said = turn(seen(many), demand(2, floor=2))
    assert said is not None
    assert (said.reason, "Not even one fits" in said.message) == (Reason.MEMORY, False)


def test_what_runs_elsewhere_is_not_called_too_large_for_a_gpu_that_is_too_small() -> None:
    text = "gpus: {a: {coresOfOthers: 64}, b: {kind: L4, node: node-1}}\n" + (
        "servings: {chat: {batch: 64, model: llama-2-13b}}\nreplicas: [{serving: chat, gpu: a}]"
    )
    said = turn(seen(text), demand(2))
    assert said is not None
    assert (said.reason, said.subject) == (Reason.MEMORY, B)
    assert "Not even one fits" not in said.message


@pytest.mark.parametrize(
    ("text", "wanted", "opened"),
    [
        ("gpus: {a: , b: }\nservings: {chat: {batch: 64}}", 1, False),
        (ONE, 2, False),
        (FULL_AND_NO_CORES.replace("b: {", "c: {node: node-2}, b: {"), 6, True),
    ],
)
def test_a_gpu_is_opened_only_beside_others_and_because_they_take_no_more(text: str, wanted: int, opened: bool) -> None:
    said = turn(seen(text), demand(wanted))
    assert said is not None
    assert said.reason == "Added"
    assert ("is opened because" in said.message) is opened
    assert (said.message.partition("is opened because")[2].count("GPU-") >= 1) is opened, "each full one says why"


@pytest.mark.parametrize(("floor", "asked"), [(1, False), (2, True)])
def test_the_users_least_count_is_asked_for_and_what_answers_the_load_is_not(floor: int, asked: bool) -> None:
    board = board_on(seen(ONE))
    take_turn(board, board.facts.servings[CHAT], demand(2, floor=floor), record("DemandMet"), (), (), [])
    assert [each.asked for each in board.experiments.values()] == [asked]


@pytest.mark.parametrize(("basis", "told"), [(Basis.ARRIVALS, True), (Basis.MANUAL, False)])
def test_one_that_is_given_up_is_told_with_the_load_where_the_load_is_why(basis: Basis, told: bool) -> None:
    two = seen("gpus: {a: }\nservings: {chat: {batch: 64, most: 1}}\nreplicas: [{serving: chat, gpu: a, count: 2}]")
    said = turn(two, demand(1, basis=basis, rate=7.5))
    assert said is not None
    assert (said.reason, "predicted to hold 7.5 requests/s" in said.message) == ("Removed", told)


# Away from where it is


CORDONED = """gpus: {a: {cordoned: true}, b: {node: node-1}}
servings: {chat: {batch: 64}, docs: {batch: 64}}
replicas: [{serving: chat, gpu: a, age: 100}, {serving: docs, gpu: b}]"""


def test_what_a_drained_node_has_lost_moves_in_one_step_and_because_somebody_asked() -> None:
    observation = seen(CORDONED)
    leaving = tuple(replace(each, deletion_at=NOON) if each.serving == CHAT else each for each in observation.replicas)
    board = board_on(replace(observation, replicas=leaving))
    said = take_turn(board, board.facts.servings[CHAT], demand(1, floor=0), record("DemandMet"), (), (), [])
    assert said is not None
    assert (said.reason, said.subject) == ("Moved", B)
    assert [each.gpu_uuid for each in board.of[CHAT]] == [B]
    assert board.experiments[B].asked


HELD = CORDONED.replace("b: {node: node-1}", "b: {node: node-1, heldBy: Pod batch/job}").replace(
    ", {serving: docs, gpu: b}", ""
)


@pytest.mark.parametrize("serves", [True, False])
def test_one_that_has_no_other_place_is_looked_at_no_further_only_if_it_does_not_serve(serves: bool) -> None:
    observation, verdicts = seen(HELD), list[Any]()
    board = board_on(observation if serves else without_pod(observation))
    said = take_turn(board, board.facts.servings[CHAT], demand(), None, (), (), verdicts)
    assert said is not None
    assert (said.reason, bool(verdicts)) == (Reason.HELD_BY_OTHERS, serves)
    assert [each.gpu_uuid for each in board.of[CHAT]] == [A]
    assert A not in board.touched, "nothing was done there, so another serving may"


def test_a_gpu_that_was_touched_stays_so_where_a_replica_cannot_leave_it() -> None:
    board = board_on(without_pod(seen(HELD)))
    board.touched.add(A)
    take_turn(board, board.facts.servings[CHAT], demand(), None, (), (), [])
    assert A in board.touched


def test_what_cannot_leave_yet_because_the_other_gpu_is_busy_says_nothing() -> None:
    board = board_on(
        without_pod(seen(CORDONED.replace(", docs: {batch: 64}", "").replace(", {serving: docs, gpu: b}", "")))
    )
    board.touched.add(B)
    assert take_turn(board, board.facts.servings[CHAT], demand(), record("DemandMet"), (), (), []) is None
    assert [each.gpu_uuid for each in board.of[CHAT]] == [A]


@pytest.mark.parametrize("lost", ["no", "leaves", "is gone"])
def test_why_a_replica_left_a_cordoned_node_says_whether_its_pod_was_taken_away(lost: str) -> None:
    observation = seen(CORDONED)
    if lost == "leaves":
        leaving = (replace(each, deletion_at=NOON) if each.serving == CHAT else each for each in observation.replicas)
        observation = replace(observation, replicas=tuple(leaving))
    elif lost == "is gone":
        observation = replace(
            observation, replicas=tuple(each for each in observation.replicas if each.serving != CHAT)
        )
    said = turn(observation, demand(1))
    assert said is not None
    assert (said.reason, "its pod was taken away" in said.message) == ("Moved", lost != "no")


OUTDATED = """gpus: {a: {heldBy: Pod batch/job}, b: {node: node-1}}
servings: {chat: {batch: 64}}
replicas: [{serving: chat, gpu: a, template: old}%s]"""


def test_one_that_cannot_be_replaced_where_it_is_moves_to_a_gpu_that_takes_it_if_it_serves() -> None:
    board = board_on(seen(OUTDATED % ""))
    said = take_turn(board, board.facts.servings[CHAT], demand(), None, (), (), [])
    assert said is not None
    assert (said.reason, said.subject) == ("Moved", B)
    assert [(each.gpu_uuid, each.template_hash) for each in board.of[CHAT]] == [(B, "template00")]
    held = board_on(seen(OUTDATED.replace("{node: node-1}", "{node: node-1, heldBy: Pod batch/other}") % ""))
    starts = board_on(seen(OUTDATED.replace("template: old", "template: old, phase: Starting") % ""))
    for stays in (held, starts):
        before = stays.placements
        said = take_turn(stays, stays.facts.servings[CHAT], demand(), None, (), (), [])
        assert said is not None
        assert (said.reason, said.subject, stays.placements) == (Reason.HELD_BY_OTHERS, A, before)


# What one pod holds is lost together


def at_home(observation: Observation, together: bool = True) -> Observation:
    gpus = tuple(replace(each, gpu=replace(each.gpu, one_household=together)) for each in observation.gpus)
    return replace(
        observation, gpus=gpus, servings=tuple(replace(each, household="h") for each in observation.servings)
    )


LONG_AGO, LATELY = Seconds(NOON - 7200.0), Seconds(NOON - 10.0)
PLANNED = Seconds(NOON - 3600.0)


@pytest.mark.parametrize(
    ("was", "pod", "together", "lost"),
    [
        (record("DemandMet", at=LATELY), "gone", True, True),
        (record("GoesPast", at=LATELY), "gone", True, True),
        (record("DemandMet", at=LATELY), "gone", False, False),
        (record("DemandMet", at=LATELY), "serves", True, False),
        (record("Added", at=LATELY), "gone", True, False),
        (record("DemandMet", at=PLANNED), "gone", True, False),
        (record("DemandMet", at=LONG_AGO), "gone", True, False),
        (record("Added", at=LONG_AGO), "leaves", True, True),
        (record("Added", at=LONG_AGO), "leaves", False, False),
        (None, "leaves", True, False),
    ],
)
def test_a_host_is_lost_that_was_there_when_all_was_well_or_whose_end_was_asked_for(
    was: Record | None, pod: str, together: bool, lost: bool
) -> None:
    observation = at_home(seen(ONE), together)
    if pod == "gone":
        observation = without_pod(observation)
    elif pod == "leaves":
        observation = with_pod(observation, deletion_at=NOON)
    said = turn(observation, demand(), was)
    assert (said is not None and said.reason == "HostLost") is lost


@pytest.mark.parametrize(("phase", "lost"), [(Phase.STARTING, True), (Phase.READY, False)])
def test_mps_is_lost_until_the_engine_serves_again(phase: Phase, lost: bool) -> None:
    said = turn(with_pod(seen(ONE), trouble=Trouble.MPS_LOST, phase=phase), demand())
    assert said is not None
    assert (said.reason == "MpsLost") is lost


# What comes first


def test_a_pool_without_gpus_says_so_whatever_a_serving_needs() -> None:
    empty = replace(seen(ONE), gpus=(), replicas=())
    bare = board_on(replace(empty, plan=replace(empty.plan, placements=())))  # type: ignore[type-var]
    said = take_turn(bare, bare.facts.servings[CHAT], demand(), None, (), (), [])
    assert said is not None
    assert (said.reason, said.subject) == ("NoGpu", str(CHAT))
    assert said.message


def test_while_what_stood_on_gpus_that_are_gone_is_forgotten_nothing_new_is_said() -> None:
    assert turn(replace(seen(ONE), gpus=(), replicas=()), demand(2), record("Added")) is None


def test_what_did_not_come_of_another_serving_is_not_this_ones_to_tell() -> None:
    observation = seen(ONE.replace("chat: {batch: 64}", "chat: {batch: 64}, docs: {batch: 64}"))
    [placement] = board_on(observation).placements
    lost = GivenUp(placement=replace(placement, serving=key("docs")), why="it failed", instead=None)
    said = turn(observation, demand(), given_up=(lost,))
    assert said is not None
    assert said.reason == Reason.DEMAND_MET
    own = turn(observation, demand(), given_up=(replace(lost, placement=placement),))
    assert own is not None
    deadline = observation.policy.pending_deadline
    assert (own.reason, own.observed, own.limit, own.unit) == ("Withdrawn", deadline, deadline, Unit.SECONDS)


def test_nothing_is_replaced_by_engines_that_are_known_not_to_start() -> None:
    board = board_on(seen(ONE.replace("gpu: a}", "gpu: a, template: old}")))
    refusal = Lesson(
        serving=CHAT, gpu_kind="H100-80GB", template_hash="template00", refusal="no", until=Seconds(NOON + 9.0)
    )  # fmt: skip
    board.lessons[CHAT, "H100-80GB"] = refusal
    before = board.placements
    said = take_turn(board, board.facts.servings[CHAT], demand(), None, (), (), [])
    assert said is not None
    assert (said.reason, board.placements) == ("EngineRefused", before)


@pytest.mark.parametrize(
    ("count", "asked", "told"),
    [(1, "least: 0", "Asleep"), (2, "least: 0", "Removed"), (1, "least: 0, replicas: 0", "Removed")],
)
def test_who_gives_up_the_last_replica_by_itself_falls_asleep(count: int, asked: str, told: str) -> None:
    text = ONE.replace("batch: 64", f"batch: 64, {asked}").replace("gpu: a}", f"gpu: a, count: {count}}}")
    assert reason(text, demand(count - 1, floor=0, spare=True)) == told


def test_one_more_is_told_with_what_it_brings_and_the_least_that_it_must() -> None:
    first = turn(seen("gpus: {a: }\nservings: {chat: {batch: 64}}"), demand())
    more = turn(seen("gpus: {a: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a}]"), demand(2))
    assert first is not None
    assert more is not None
    for said in (first, more):
        assert (said.limit, said.unit, said.at_least) == (Policy().least_marginal_gain, Unit.RATIO, True)
    assert first.observed == 0.0, "nothing was there before"
    assert Policy().least_marginal_gain < more.observed < 1.0


# What was not kept


def test_a_step_that_was_taken_back_is_told_in_its_own_unit() -> None:
    board = board_on(seen(STEP % (2.5, 2.5)))
    [experiment] = board.experiments.values()
    for measured, predicted, at_least in ((0.02, 0.01, False), (0.1, 0.5, True), (0.5, 0.5, False)):
        harm = Compared(what="gain", subject=A, predicted=predicted, measured=measured, unit="ratio")
        back = TakenBack(experiment=experiment, harm=harm, placements=board.placements)
        said = take_turn(board, board.facts.servings[CHAT], demand(), None, (), (back,), [])
        assert said is not None
        assert (said.reason, said.observed, said.limit) == (Reason.ROLLED_BACK, measured, predicted)
        assert (said.unit, said.at_least) == (Unit.RATIO, at_least)


@pytest.mark.parametrize("again", [True, False])
def test_one_that_did_not_come_is_told_with_what_stays_in_its_place(again: bool) -> None:
    observation = seen(ONE)
    board = board_on(observation)
    [placement] = board.placements
    lost = GivenUp(placement=placement, why="it failed", instead=observation.replicas[0] if again else None)
    said = turn(observation, demand(), given_up=(lost,))
    assert said is not None
    assert ("was to replace stays" in said.message) is again


def undone(name: str, neighbours: str) -> Undone:
    return Undone(
        serving=key(name), model="llama-3.2-1b", gpu_kind="H100-80GB", neighbours=neighbours, at=NOON, until=NOON,
        compared=Compared(what="gain", subject=A, predicted=0.5, measured=0.1, unit="ratio"), inputs=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "neighbours", "tried"),
    [("chat", "in the place of 1", False), ("docs", "in the place of 1", True), ("chat", "1 x llama-3.2-1b", True)],
)
def test_a_shape_that_comes_back_after_another_was_undone_is_no_experiment(
    name: str, neighbours: str, tried: bool
) -> None:
    two = seen((ONE + "\n").replace("gpu: a}", "gpu: a, template: old, count: 2}"))
    board = board_on(two)
    board.undone += [undone(name, neighbours), undone("docs", "1 x llama-3.2-1b")]
    said = take_turn(board, board.facts.servings[CHAT], demand(2), None, (), (), [])
    assert said is not None
    assert (said.reason, bool(board.experiments)) == ("Replaced", tried)


# What is only advised


def test_advice_is_of_the_servings_own_shape_and_says_how_many_a_gpu_takes() -> None:
    text = "gpus: {a: , b: {kind: L4}}\nservings: {chat: {batch: 64, mode: Advise}, docs: {batch: 16}}"
    board = board_on(seen(text))
    said = take_turn(board, board.facts.servings[CHAT], demand(0), None, (), (), [])
    assert said is not None
    mine = [each for (of, _), each in board.shapes.items() if of == CHAT]
    assert (said.observed, said.unit) == (min(mine, key=lambda each: each.gpu_kind).replicas_per_gpu, Unit.REPLICAS)
    assert "16 sequences" not in said.message


@pytest.mark.parametrize(("wanted", "told"), [(2, "HostCpu"), (1, "Advised"), (0, "Advised")])
def test_advice_names_what_would_be_in_the_way_only_where_one_more_is_wanted(wanted: int, told: str) -> None:
    text = (NO_CORES % "").replace("batch: 64", "batch: 64, mode: Advise")
    board, verdicts = board_on(seen(text)), list[Any]()
    said = take_turn(board, board.facts.servings[CHAT], demand(wanted), None, (), (), verdicts)
    assert said is not None
    assert said.reason == told
    assert verdicts
    assert reason(ONE.replace("batch: 64", "batch: 64, mode: Advise"), demand(wanted)) == "Advised"


SHAPE = Shape(max_num_seqs=64, kv_cache_memory_bytes=Bytes(2**30), max_num_batched_tokens=2048, max_model_len=2048)


def better(gain: float | None) -> Better:
    return Better(
        gpu_kind="L4", engines=1, shape=SHAPE, replicas_per_gpu=2, utilization_hundredths=20, freed_bytes=1,
        gain=None if gain is None else Ratio(gain), gain_alone=None, gpus_now=1, gpus_needed=None,
        message="better",
    )  # fmt: skip


def looked_at(*gains: float | None, problem: str | None = None) -> Decision:
    found = EngineFound(pod="vllm-0", node="node-0", problem=problem), EngineFound(pod="vllm-1", node="node-0")
    appraisal = Appraisal(serving=CHAT, at=NOON, engines=found, better=tuple(better(gain) for gain in gains), inputs="")
    return appraised(serving("watch"), appraisal)


def test_of_engines_of_others_the_largest_gain_that_is_known_is_told() -> None:
    said = looked_at(0.1, None, 0.4)
    assert (said.reason, said.observed, said.unit, said.at_least) == ("Advised", 0.4, Unit.RATIO, True)
    assert looked_at(None).observed == 0.0


def test_an_engine_that_cannot_be_judged_is_named_and_the_others_are_not() -> None:
    said = looked_at(0.1, problem="it runs over 2 GPUs")
    assert "vllm-0: it runs over 2 GPUs." in said.message
    assert "vllm-1" not in said.message
    assert "it runs over 2 GPUs" in looked_at(problem="it runs over 2 GPUs").message
    assert looked_at().message == "No pod matches spec.observe.selector."
