"""Recorded ticks of the twin and of a journey are decided as they were.

`tests/traces/twin-*` are histories of the simulated cluster (a seed each), recorded anew by `--regenerate`.
`tests/traces/journey.jsonl` is from the operator beside a real API server: its observations stay as they are, and
`--regenerate` writes what is decided on them now. Only ticks at which something was planned or done are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from gpupack import catalog
from gpupack.decide.reconcile import reconcile
from gpupack.facts.interpretation import Facts
from gpupack.facts.observation import Observation
from gpupack.plan import Outcome, Tell
from gpupack.replay import Weight, replay
from gpupack.soak.history import draw
from gpupack.soak.play import play
from gpupack.trace.lines import Header, header_line, read, tick_line

TRACES = Path(__file__).parents[1] / "traces"
SEEDS = {"twin-seed-2.jsonl": 2, "twin-seed-4.jsonl": 4}
JOURNEY = "journey.jsonl"
KEPT = 12
"""Ticks of a file, spread over the whole recording."""

Decided = tuple[Observation, Outcome]


def recorded(seed: int) -> list[Decided]:
    """Every look of the operator in a history of the simulated cluster."""
    looks: list[Decided] = []

    def record(observation: Observation, facts: Facts) -> Outcome:
        outcome = reconcile(observation, facts)
        looks.append((observation, outcome))
        return outcome

    assert play(draw(seed), reconcile=record).violation is None
    return looks


def decided_again(path: Path) -> list[Decided]:
    return [(each.observation, reconcile(each.observation)) for each in read(path)]


def telling(looks: Iterable[Decided]) -> list[Decided]:
    """Those that planned, did or held something, evenly thinned out."""
    found = [
        (seen, outcome)
        for seen, outcome in looks
        if outcome.plan_changed or seen.stale or any(not isinstance(each, Tell) for each in outcome.actions)
    ]
    return [found[index * len(found) // KEPT] for index in range(KEPT)] if len(found) > KEPT else found


def text_of(looks: Iterable[Decided]) -> str:
    def lines() -> Iterator[str]:
        for number, (seen, outcome) in enumerate(looks):
            if number == 0:
                yield header_line(Header(policy=seen.policy, catalog=catalog.digest()))
            yield tick_line(seen, outcome)

    return "".join(f"{line}\n" for line in lines())


@pytest.mark.parametrize("name", [*SEEDS, JOURNEY])
def test_golden_trace_is_decided_as_it_was(name: str, regenerating: bool) -> None:
    path = TRACES / name
    if regenerating:
        path.write_text(text_of(telling(recorded(SEEDS[name])) if name in SEEDS else decided_again(path)))
    replayed = list(replay(read(path)))
    assert len(replayed) > 5
    differing = [(each.number, one) for each in replayed for one in each.differences if one.weight.matters]
    assert not differing, f"gpupack replay {path} tells more; if it is meant: pytest --regenerate"


def test_golden_traces_hold_what_a_trace_is_for() -> None:
    """Plans that change, actions, missing readings: or the traces above prove little."""
    ticks = [each for name in (*SEEDS, JOURNEY) for each in read(TRACES / name)]
    kinds = {type(action).__name__ for each in ticks for action in each.outcome.actions}
    assert kinds >= {"StartReplica", "StopReplica", "LeaveService", "ApplyClaim", "Tell"}
    reasons = {
        record.reason
        for each in ticks
        if each.outcome.pool_status.plan is not None
        for record in each.outcome.pool_status.plan.records
    }
    assert reasons >= {"Added", "DemandMet", "Removed"}
    assert {each.weight for each in replay(ticks)} <= {Weight.SAME, Weight.WORDING}
