"""GPUs whose engines live together in one pod: whom it takes, for how many it has cores, and how a new one moves in."""

from __future__ import annotations

from dataclasses import replace

from gpupack.decide.hold import renew
from gpupack.decide.pack import Candidate, held_by_others, host_cpu
from gpupack.decide.steps import obstacle, steps
from gpupack.facts.observation import ClaimSeen, Observation
from gpupack.facts.serving import Sharing
from gpupack.plan import DeleteClaim, LeaveService, Verdict

from ..strategies import key
from .boards import A, board_on, demand, seen, with_placement, without_pod, without_pods

CHAT, DOCS = key("chat"), key("docs")
TWO = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a, count: 2, age: 5000}]"
OLD_TWO = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\n" + (
    "replicas: [{serving: chat, gpu: a, count: 2, age: 5000, template: old}]"
)
BOTH = """gpus: {a: }
servings: {chat: {batch: 64}, docs: {batch: 64}}
replicas: [{serving: chat, gpu: a}]"""


def together(observation: Observation, *, pod: str = "home", engines: int = 4, **households: str) -> Observation:
    """The same where engines of a GPU live in one pod, which holds the first GPU for that household."""
    claim = ClaimSeen(
        namespace="team", name="host", uid="h", gpu_uuid=A, sharing=Sharing.MPS,
        owners=tuple(each.uid for each in observation.servings), household=pod, engines=engines,
    )  # fmt: skip
    return replace(
        observation,
        gpus=tuple(replace(each, gpu=replace(each.gpu, one_household=True)) for each in observation.gpus),
        servings=tuple(replace(each, household=households.get(each.key.name, "home")) for each in observation.servings),
        claims=(claim,),
    )


def against(observation: Observation, name: str) -> list[Verdict]:
    """What speaks against one more replica of that serving on the first GPU."""
    board = board_on(observation)
    serving = board.facts.servings[key(name)]
    chosen = board.chosen(serving.key, A)
    assert chosen is not None
    candidate = Candidate(
        board=board, serving=serving, sharing=Sharing.MPS, gpu=board.facts.gpus[A], chosen=chosen,
        demand=demand(2), planned=len(board.of[serving.key]),
    )  # fmt: skip
    return [verdict for check in (held_by_others, host_cpu) for verdict in check(candidate)]


def test_servings_of_one_household_share_a_gpu_and_those_of_two_do_not() -> None:
    observation = seen(BOTH)
    assert against(together(observation), "docs") == []
    (held,) = against(together(observation, docs="other image"), "docs")
    assert held.detail == "a pod of another image or pod template, which holds this GPU"


def test_a_pod_takes_as_many_engines_as_it_has_cores_for() -> None:
    assert against(together(seen(TWO), engines=3), "chat") == []
    (short,) = against(together(seen(TWO), engines=2), "chat")
    assert (short.observed.value, short.limit.value, short.detail) == (6.0, 4.0, "cores of the pod host")


def test_an_engine_starts_in_the_pod_of_its_household_and_waits_for_another_to_go() -> None:
    one_missing = without_pod(seen(TWO), 1)
    for pod, why in (("home", None), ("old", "the claim host has to go first")):
        board = board_on(together(one_missing, pod=pod))
        assert obstacle(board, board.on[A][1]) == why


def test_a_pod_of_another_household_goes_once_it_is_empty() -> None:
    empty = together(without_pods(seen(TWO)), pod="old")
    assert [each for each in steps(board_on(empty)) if isinstance(each, DeleteClaim)] == [
        DeleteClaim(namespace="team", name="host", uid="h")
    ]


def test_when_the_image_changes_a_whole_gpu_moves_out_before_its_new_pod_can_come() -> None:
    """Else each waits for the other: the new pod for the GPU, the old engine for the new one to be ready."""
    board = board_on(together(seen(OLD_TWO), pod="old"))
    serving = board.facts.servings[CHAT]
    first = renew(board, serving, Sharing.MPS, demand(2))
    assert first is not None
    assert first.new is not None
    begun = together(with_placement(seen(OLD_TWO), 0, template_hash=serving.template_hash), pod="old")
    second = renew(board_on(begun), serving, Sharing.MPS, demand(2))
    assert second is not None
    assert second.old.slot == 1
    assert any(isinstance(each, LeaveService) for each in steps(board_on(begun)))
    assert renew(board_on(replace(begun, claims=())), serving, Sharing.MPS, demand(2)) is None
