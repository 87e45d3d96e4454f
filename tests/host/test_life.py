"""The life of engines and MPS in one pod, played event by event."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpupack.host import life
from gpupack.host.life import Action, Ending, Event, Mps, Stage, Times
from gpupack.host.orders import EngineOrder, Orders

TIMES = Times(settle=5.0, drain=60.0, broken=10.0, load=100.0, first_backoff=10.0, mps_start=30.0, mps_tries=2)
SERVER = 77


@dataclass(slots=True)
class Play:
    """A supervisor without processes: `does` says what each event led to."""

    state: life.State
    now: float = 0.0
    done: list[Action] = field(default_factory=list)

    def does(self, event: Event, after: float = 0.0) -> list[Action]:
        self.now += after
        self.state, actions = life.step(self.state, event, self.now, TIMES)
        self.done += actions
        return list(actions)

    def ready(self, *names: str) -> None:
        for name in names:
            self.does(life.Probed(name=name, well=True))

    def ended(self, name: str, code: int = 0) -> list[Action]:
        return self.does(life.EngineEnded(name=name, ending=_ending(code)))

    def stages(self) -> dict[str, Stage]:
        return {each.name: each.stage for each in self.state.engines}


def _ending(code: int = 0) -> Ending:
    return Ending(code=code, words=f"exit status {code}", log=("its last line",), at=0.0)


def _orders(generation: int, *names: str) -> life.Ordered:
    engines = tuple(EngineOrder(name=each, port=8001 + at, arguments=(each,)) for at, each in enumerate(names))
    return life.Ordered(orders=Orders(generation=generation, engines=engines))


def _start(name: str, at: int = 0) -> life.StartEngine:
    return life.StartEngine(order=EngineOrder(name=name, port=8001 + at, arguments=(name,)))


def _without_mps(*names: str) -> Play:
    play = Play(life.beginning(mps=False))
    play.does(_orders(1, *names))
    play.ready(*names)
    return play


def _with_mps(*names: str) -> Play:
    play = Play(life.beginning(mps=True))
    play.does(_orders(1, *names))
    play.does(life.MpsSeen(server=SERVER))
    play.ready(*names)
    assert all(stage is Stage.READY for stage in play.stages().values())
    return play


def test_engines_start_one_at_a_time_in_their_order() -> None:
    play = Play(life.beginning(mps=False))
    assert play.does(_orders(1, "a", "b")) == [_start("a")]
    assert play.does(life.Passed(), after=50.0) == []
    assert play.does(life.Probed(name="a", well=True)) == [_start("b", 1)]


def test_no_engine_starts_before_the_mps_server_is_there() -> None:
    play = Play(life.beginning(mps=True))
    assert play.does(_orders(1, "a")) == [life.StartMps()]
    assert play.does(life.MpsSeen(server=None)) == []
    assert play.does(life.MpsSeen(server=SERVER)) == [_start("a")]


def test_an_engine_ordered_away_serves_on_for_a_moment_then_drains_then_is_killed() -> None:
    play = _without_mps("a", "b")
    assert play.does(_orders(2, "a")) == []
    assert play.stages()["b"] is Stage.LEAVING
    assert play.does(life.Passed(), after=TIMES.settle) == [life.TerminateEngine(name="b")]
    assert play.does(life.Passed(), after=TIMES.drain - 1.0) == []
    assert play.does(life.Passed(), after=1.0) == [life.KillEngine(name="b")]
    play.ended("b", -9)
    assert play.stages() == {"a": Stage.READY}


def test_nothing_starts_while_an_engine_leaves() -> None:
    play = _without_mps("a", "b")
    assert play.does(_orders(2, "a", "c")) == []
    assert play.does(life.Passed(), after=TIMES.settle) == [life.TerminateEngine(name="b")]
    assert play.ended("b") == [_start("c", 1)]


def test_an_engine_ordered_back_before_sigterm_stays() -> None:
    play = _without_mps("a")
    play.does(_orders(2))
    play.does(_orders(3, "a"))
    assert play.does(life.Passed(), after=1000.0) == []
    assert play.stages() == {"a": Stage.READY}


def test_other_arguments_under_one_name_replace_the_process() -> None:
    play = _without_mps("a")
    other = EngineOrder(name="a", port=8001, arguments=("other",))
    play.does(life.Ordered(orders=Orders(generation=2, engines=(other,))))
    play.does(life.Passed(), after=TIMES.settle)
    assert play.ended("a") == [life.StartEngine(order=other)]


def test_older_orders_change_nothing() -> None:
    play = _without_mps("a")
    play.does(_orders(5, "a"))
    play.does(_orders(4))
    assert (play.state.generation, play.stages()) == (5, {"a": Stage.READY})


def test_a_crash_is_remembered_and_waits_longer_each_time() -> None:
    play = _without_mps("a")
    play.ended("a", 1)
    [failed] = play.state.engines
    assert (failed.stage, failed.why, failed.restarts) == (Stage.FAILED, "exit status 1", 1)
    assert failed.ending is not None
    assert failed.ending.log == ("its last line",)
    assert play.does(life.Passed(), after=9.9) == []
    assert play.does(life.Passed(), after=0.1) == [_start("a")]
    play.ended("a", 1)
    assert play.does(life.Passed(), after=19.9) == []
    assert play.does(life.Passed(), after=0.1) == [_start("a")]


def test_a_crash_loop_does_not_keep_the_others_from_starting() -> None:
    play = Play(life.beginning(mps=False))
    play.does(_orders(1, "a", "b"))
    assert play.ended("a", 1) == [_start("b", 1)]


def test_a_start_that_never_answers_is_ended_and_counts_as_failed() -> None:
    play = Play(life.beginning(mps=False))
    play.does(_orders(1, "a"))
    assert play.does(life.Passed(), after=TIMES.load) == [life.TerminateEngine(name="a")]
    play.ended("a")
    assert play.stages() == {"a": Stage.FAILED}
    assert play.state.engines[0].why == "it did not answer within 100 s"


def test_an_engine_that_misses_three_probes_is_unwell_and_recovers() -> None:
    play = _without_mps("a")
    for expected in (Stage.READY, Stage.READY, Stage.UNWELL):
        play.does(life.Probed(name="a", well=False))
        assert play.stages()["a"] is expected
    play.ready("a")
    assert play.stages()["a"] is Stage.READY


def test_a_lost_mps_server_ends_clients_then_the_daemon_then_starts_all_in_order() -> None:
    play = _with_mps("a", "b")
    assert play.does(life.MpsSeen(server=None)) == [life.TerminateEngine(name="a"), life.TerminateEngine(name="b")]
    assert play.ended("a") == []
    assert play.ended("b") == [life.QuitMps()]
    assert play.does(life.MpsEnded(ending=_ending())) == [life.StartMps()]
    assert play.does(life.MpsSeen(server=SERVER + 1)) == [_start("a")]
    assert play.state.mps.restarts == 1
    assert play.state.mps.why == f"the MPS server {SERVER} is gone"
    assert [each.restarts for each in play.state.engines] == [1, 1]


def test_clients_that_ended_before_mps_was_seen_to_be_lost_start_again_with_the_others_at_once() -> None:
    play = _with_mps("a", "b", "c")
    play.ended("a", 1)
    play.ended("b", 1)
    assert play.does(life.MpsSeen(server=SERVER + 1), after=1.0) == [life.TerminateEngine(name="c")]
    assert play.ended("c") == [life.QuitMps()]
    play.does(life.MpsEnded(ending=_ending()))
    assert play.does(life.MpsSeen(server=SERVER + 2)) == [_start("a")]
    assert [each.restarts for each in play.state.engines] == [1, 1, 1]
    assert {each.why for each in play.state.engines} == {f"the MPS server {SERVER} is gone"}


def test_an_engine_that_failed_long_before_mps_was_lost_keeps_its_own_reason() -> None:
    play = _with_mps("a", "b")
    play.ended("a", 1)
    play.does(life.MpsSeen(server=None), after=TIMES.together + 0.1)
    assert play.state.engines[0].why == "exit status 1"


def test_a_fault_of_the_server_is_a_fault_of_all_and_clients_that_hang_are_killed_soon() -> None:
    play = _with_mps("a")
    assert play.does(life.MpsSeen(server=SERVER, fault="FAULT")) == [life.TerminateEngine(name="a")]
    assert play.does(life.Passed(), after=TIMES.broken) == [life.KillEngine(name="a")]


def test_a_daemon_that_dies_takes_its_clients_along_and_is_not_asked_to_quit() -> None:
    play = _with_mps("a")
    assert play.does(life.MpsEnded(ending=_ending(1))) == [life.TerminateEngine(name="a")]
    play.ended("a")
    assert play.does(life.Passed()) == [life.StartMps()]
    assert life.QuitMps() not in play.done


def test_where_mps_cannot_start_one_engine_runs_and_the_others_say_why_they_wait() -> None:
    play = Play(life.beginning(mps=True))
    play.does(_orders(1, "a", "b"))
    ending = Ending(code=1, words="exit status 1", log=("no GPU here",), at=0.0)
    play.does(life.MpsEnded(ending=ending))
    assert play.does(life.Passed(), after=9.9) == []
    assert play.does(life.Passed(), after=0.1) == [life.StartMps()]
    assert play.does(life.MpsEnded(ending=ending)) == [_start("a")]
    play.ready("a")
    play.does(life.Passed(), after=100.0)
    assert play.stages() == {"a": Stage.READY, "b": Stage.WAITING}
    assert "the MPS daemon did not start: exit status 1: no GPU here" in play.state.engines[1].why


def test_a_missing_mps_program_is_not_tried_again() -> None:
    play = Play(life.beginning(mps=True))
    play.does(life.MpsEnded(ending=_ending(life.NOT_FOUND)))
    play.does(life.Passed())
    play.does(life.MpsEnded(ending=_ending(life.NOT_FOUND)))
    assert play.state.mps.stage is Mps.UNAVAILABLE


def test_a_daemon_without_a_server_is_killed_and_counts_as_a_try() -> None:
    play = Play(life.beginning(mps=True))
    play.does(life.Passed())
    assert play.does(life.Passed(), after=TIMES.mps_start) == [life.KillMps()]
    play.does(life.MpsEnded(ending=_ending(-9)))
    assert (play.state.mps.stage, play.state.mps.tries) == (Mps.OFF, 1)


def test_sigterm_drains_every_engine_at_once_then_ends_mps() -> None:
    play = _with_mps("a", "b")
    assert play.does(life.AskedToStop()) == [life.TerminateEngine(name="a"), life.TerminateEngine(name="b")]
    play.ended("a")
    assert play.ended("b") == [life.QuitMps()]
    assert not play.state.finished
    play.does(life.MpsEnded(ending=_ending()))
    assert play.state.finished


def test_sigterm_with_nothing_running_is_the_end() -> None:
    play = Play(life.beginning(mps=False))
    play.does(life.AskedToStop())
    assert play.state.finished
