"""The sentences are the product: every objection and every step, as a golden file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gpupack.decide import explain
from gpupack.facts.estimate import Estimate, Source
from gpupack.facts.experiment import Compared, Experiment, Judgement
from gpupack.facts.placement import ChosenShape, PredictedEffect
from gpupack.facts.serving import Shape, Slo, Statistic
from gpupack.plan import Reason, Unit, Verdict
from gpupack.units import GIB, Bytes, Ratio, Seconds

from ..strategies import NOON, gpu, key

GPU = gpu(7).uuid


def given(value: float) -> Estimate:
    return Estimate.exact(value, Source.MEASURED)


def predicted(value: float, share: float = 0.08) -> Estimate:
    return Estimate.within(value, share, Source.CALIBRATED)


def verdict(
    reason: Reason,
    observed: Estimate,
    limit: float,
    unit: Unit,
    *,
    subject: str = GPU,
    at_least: bool = False,
    detail: str = "",
) -> Verdict:
    return Verdict(
        subject=subject, reason=reason, observed=observed, limit=given(limit), unit=unit, at_least=at_least,
        detail=detail,
    )  # fmt: skip


VERDICTS = (
    verdict(Reason.DATA_MISSING, given(1), 0, Unit.NONE, detail="DCGM_FI_DEV_FB_USED Stale"),
    verdict(Reason.DATA_MISSING, given(3), 0, Unit.NONE, subject="team/chat", detail="chat-0: no readings"),
    verdict(Reason.HELD_BY_OTHERS, given(1), 0, Unit.NONE, detail="ResourceClaim research/training"),
    verdict(Reason.HELD_BY_OTHERS, given(9 * GIB), GIB, Unit.BYTES, detail="memory that no pod of gpupack explains"),
    verdict(Reason.ROLLED_BACK, given(-0.12), 0.28, Unit.RATIO, at_least=True, detail="gain of throughput"),
    verdict(Reason.ROLLED_BACK, given(0.0213), 0.0123, Unit.SECONDS, detail="inter-token latency"),
    verdict(Reason.MAX_REPLICAS, given(5), 4, Unit.REPLICAS, subject="team/chat"),
    verdict(Reason.DEMAND_MET, given(0.37), 0.85, Unit.RATIO, subject="team/chat", at_least=True),
    verdict(Reason.DEMAND_MET, given(2), 1, Unit.REPLICAS, subject="team/chat", detail="Declared"),
    verdict(Reason.DEMAND_MET, given(4), 3, Unit.REPLICAS, subject="team/chat", detail="Manual"),
    verdict(Reason.MEMORY, given(83.5 * GIB), 79.6 * GIB, Unit.BYTES),
    verdict(Reason.MEMORY, given(2), 1, Unit.REPLICAS, detail="nothing exports the framebuffer in use"),
    verdict(Reason.HOST_CPU, given(34), 32, Unit.CORES),
    verdict(
        Reason.LATENCY_SLO, predicted(0.0431), 0.040, Unit.SECONDS, subject="team/chat", detail="inter-token latency"
    ),
    verdict(
        Reason.LATENCY_SLO, predicted(1.2), 1.0, Unit.RATIO, subject="team/chat",
        detail="time to first token",
    ),
    verdict(Reason.BANDWIDTH_CEILING, given(0.93), 0.90, Unit.RATIO),
    verdict(Reason.BANDWIDTH_CEILING, predicted(0.83), 0.80, Unit.RATIO),
    verdict(Reason.MARGINAL_GAIN, predicted(0.032), 0.05, Unit.RATIO, at_least=True),
)  # fmt: skip

EFFECT = PredictedEffect(
    tokens_per_second_before=21_000.0, tokens_per_second_after=29_000.0, saturation_after=Ratio(0.84),
    itl_after=Seconds(0.0213),
)  # fmt: skip
SLO = Slo(itl=Seconds(0.040), ttft=Seconds(1.0), statistic=Statistic.P95, assumed=True)
SHAPE = ChosenShape(
    serving=key("chat"),
    gpu_kind="H100-80GB",
    shape=Shape(max_num_seqs=96, kv_cache_memory_bytes=Bytes(5 * GIB), max_num_batched_tokens=2048, max_model_len=4096),
    replicas_per_gpu=4,
    utilization_hundredths=12,
    inputs="0123456789",
    chosen_at=NOON,
)


def test_every_objection_is_a_sentence(golden: Callable[[str, str], None]) -> None:
    told = {each.reason for each in VERDICTS}
    assert told == set(Reason), "every reason has its sentence here"
    golden("explain/verdicts.txt", "".join(f"{each.reason.value}: {explain.verdict(each)}\n" for each in VERDICTS))


def test_every_step_is_a_sentence(golden: Callable[[str, str], None]) -> None:
    sentences = (
        explain.added(GPU, 1, 1, None, None, (), None),
        explain.added(GPU, 3, 4, EFFECT, 0.38, (), Seconds(0.0121)),
        explain.added(GPU, 5, 5, EFFECT, 0.02, VERDICTS[-2:], None),
        explain.opened(GPU, VERDICTS[-3:-2]),
        explain.removed(GPU, 1, 12.3456),
        explain.removed(GPU, 2, None),
        explain.replaced(GPU, 0),
        explain.moved(GPU, gpu(8).uuid),
        explain.given_up(GPU, "it stayed Pending for 600 s: 0/3 nodes are available", 600.0, again=False),
        explain.given_up(GPU, "it restarted 3 times without becoming ready", 600.0, again=True),
        explain.sharing_not_allowed("MPS", ("Exclusive",)),
        explain.advised(SHAPE),
        explain.no_gpu(),
        explain.waits(),
        explain.promise(SLO),
        explain.unreachable(SLO, 0.0481),
        explain.mismatch(("chat-a", "chat-b"), 2560),
        explain.goes_past((Reason.BANDWIDTH_CEILING, Reason.MARGINAL_GAIN)),
        explain.ready(1, 1),
        explain.ready(2, 3),
    )
    golden("explain/steps.txt", "".join(f"{each}\n" for each in sentences))


def compared(what: str, predicted: float, measured: float, unit: Unit, subject: str = "team/chat") -> Compared:
    return Compared(what=what, subject=subject, predicted=predicted, measured=measured, unit=unit.value)


def test_every_verdict_is_told_with_its_numbers(golden: Callable[[str, str], None]) -> None:
    trial = Experiment(
        serving=key("chat"), gpu_uuid=GPU, step="Added", began_at=NOON, last_at=NOON, asked=False, before=(),
        company="2 x team/chat 96", gain=Ratio(0.38), saturation=Ratio(0.84), itl=Seconds(0.0213), inputs="",
    )  # fmt: skip
    latency = compared("inter-token latency", 0.0123, 0.0121, Unit.SECONDS)
    slow = compared("inter-token latency", 0.0123, 0.0312, Unit.SECONDS)
    harm = compared("gain of throughput at full batches", 0.38, -0.12, Unit.RATIO, GPU)
    beside = (
        compared("time to first token", 0.2, 0.21, Unit.SECONDS), compared("running", 40.0, 38.25, Unit.NONE),
        compared("waiting", 0.0, 0.0, Unit.NONE), compared("DRAM active", 0.41, 0.44, Unit.RATIO, GPU),
    )  # fmt: skip
    missed = replace(trial, judgement=Judgement.MISSED, compared=(slow, *beside), undone=True)
    sentences = (
        explain.seen("Arrivals", 60.2, 0.97, 2),
        explain.seen("Manual", None, None, 3),
        explain.rejected(VERDICTS[-3:]),
        explain.expected(trial),
        explain.expected(replace(trial, gain=None)),
        explain.outcome(trial),
        explain.outcome(replace(trial, judgement=Judgement.CONFIRMED, compared=(latency, *beside))),
        explain.outcome(missed),
        explain.outcome(replace(missed, undone=False, why="it stays, because the user asked for it")),
        explain.outcome(replace(trial, judgement=Judgement.INCONCLUSIVE, why="12 requests finished in the window")),
        explain.rolled_back(missed, harm, 1, 1800.0),
        explain.rolled_back(replace(missed, step="Replaced"), harm, 1, 1800.0),
    )
    golden("explain/experiments.txt", "".join(f"{each}\n" for each in sentences))
