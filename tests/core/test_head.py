"""How an edit of the head moves what is served, the term and where training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.core.objects import NOW, checkpoint, digest, head, line, model, tracks

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead, CheckpointHeadStatus, NameOnly, PodDigest
from espalier.api.wire.problem import Problem
from espalier.core.conditions import find
from espalier.core.head import head_request, served_adapters
from espalier.core.head.head import HeadDecision, decide
from espalier.core.head.head_view import HeadView, SamplerPod
from espalier.core.lineage.lineage import BASE_POINT, Point
from espalier.core.lineage.lineage_index import grow
from espalier.core.names import adapter_name

MAIN = line("m", 4, reward="0.5")


class Server:
    """A head whose rollouts load at once whatever a decision asks for, unless they are down."""

    def __init__(self, checkpoints: Sequence[Checkpoint] = MAIN, **spec: Any) -> None:
        self.checkpoints = list(checkpoints)
        self.head = head(**spec)
        self.root: Point | None = BASE_POINT
        self.rollouts: list[SamplerPod] = [SamplerPod("pod", ready=True)]
        self.model = model()
        self.trainer_term = 0
        self.others: dict[str, Any] = {}
        self.refused: dict[str, Problem] = {}

    def view(self) -> HeadView:
        ref = self.head.spec.checkpoint_ref
        named = {c.metadata.name: c for c in self.checkpoints}
        own = [c for c in self.checkpoints if c.spec.model_ref.name == "m"]
        return HeadView(
            self.head,
            self.model,
            grow(own, self.root),
            named=named.get(ref.name) if ref else None,
            rollouts=self.rollouts,
            trainer_term=self.trainer_term,
            **self.others,
        )

    def once(self) -> HeadDecision:
        """One decision, written."""
        decision = decide(self.view(), NOW)
        self.head = self.head.model_copy(update={"status": decision.status})
        return decision

    def settle(self) -> CheckpointHead:
        """Decisions, and rollouts that obey, until nothing changes."""
        for _ in range(6):
            load = self.once().load
            loaded = frozenset({"base", *served_adapters.choose(load, self.refused)})
            self.rollouts = [
                SamplerPod(r.name, True, loaded, refused=self.refused) for r in self.rollouts
            ]
        return self.head

    def edit(self, mode: str, pin: str = "", **spec: Any) -> CheckpointHead:
        generation = self.head.metadata.generation + 1
        changed = head("m", mode, pin, generation=generation, **spec)
        self.head = changed.model_copy(update={"status": self.head.status})
        return self.settle()

    def reason(self, type_: str = "Ready") -> str:
        found = find(self.head.status.conditions, type_)
        return f"{found.status}/{found.reason}" if found else ""


def current(of: CheckpointHead) -> str | None:
    return of.status.current.name if of.status.current else None


def test_a_new_head_tracks_the_newest_checkpoint_under_the_first_term() -> None:
    server = Server()
    settled = server.settle()
    assert (current(settled), settled.status.term) == ("m-000004", 1)
    assert server.reason() == "True/Tracking"


def test_without_a_checkpoint_the_base_is_served() -> None:
    settled = Server([]).settle()
    assert settled.status.current is not None
    assert (settled.status.current.name, settled.status.current.digest) == ("", "")


def test_the_target_is_on_record_before_anything_becomes_current() -> None:
    server = Server()
    server.rollouts = [SamplerPod("pod", True, frozenset({adapter_name("m", digest("m-000004"))}))]
    first = server.once()
    assert first.status.target is not None
    assert (first.status.target.name, first.status.current) == ("m-000004", None)
    second = server.once()
    assert second.status.current is not None
    assert second.status.current.name == "m-000004"


PIN = ("Pin", "m-000002")
# edits; then term, branch, what is served, where training goes on (None: paused)
MOVES = [
    ([], 1, "main", "m-000004", "m-000004"),
    ([(*PIN, "Pause")], 2, "main", "m-000002", None),
    ([(*PIN, "Branch")], 2, "b2", "m-000002", "m-000002"),
    ([(*PIN, "Continue")], 1, "main", "m-000002", "m-000004"),
    ([(*PIN, "Pause"), ("Track", "", "")], 3, "main", "m-000004", "m-000004"),
    ([(*PIN, "Branch"), ("Track", "", "")], 2, "b2", "m-000002", "m-000002"),
    ([(*PIN, "Continue"), ("Track", "", "")], 1, "main", "m-000004", "m-000004"),
    ([(*PIN, "Pause"), ("Pin", "m-000001", "Pause")], 3, "main", "m-000001", None),
    ([(*PIN, "Branch"), ("Pin", "m-000001", "Branch")], 3, "b3", "m-000001", "m-000001"),
    ([(*PIN, "Pause"), (*PIN, "Branch")], 3, "b3", "m-000002", "m-000002"),
    ([(*PIN, "Branch"), (*PIN, "Pause")], 3, "b2", "m-000002", None),
    ([(*PIN, "Pause"), (*PIN, "Continue")], 3, "main", "m-000002", "m-000004"),
    ([(*PIN, "Branch"), (*PIN, "Continue")], 2, "b2", "m-000002", "m-000002"),
    ([(*PIN, "Branch"), ("Track", "", ""), (*PIN, "Branch")], 3, "b3", "m-000002", "m-000002"),
]


@pytest.mark.parametrize(("edits", "term", "branch", "served", "trains_from"), MOVES)
def test_the_term_rises_once_for_each_cause(
    edits: list[tuple[str, str, str]],
    term: int,
    branch: str,
    served: str,
    trains_from: str | None,
) -> None:
    server = Server()
    server.settle()
    for mode, pin, on_pin in edits:
        server.edit(mode, pin, **({"onPin": on_pin} if on_pin else {}))
    status = server.head.status
    assert (status.term, status.branch, current(server.head)) == (term, branch, served)
    start = head_request.training_point(server.head, grow(MAIN, BASE_POINT))
    assert (start.base.name if start else None) == trains_from
    assert head_request.paused(server.head) == (trains_from is None)


@pytest.mark.parametrize("on_pin", ["Pause", "Branch", "Continue"])
def test_an_edit_that_asks_the_same_raises_nothing(on_pin: str) -> None:
    server = Server()
    server.settle()
    before = server.edit("Pin", "m-000002", onPin=on_pin).status
    gate = {"metric": "reward/mean", "min": "0.1"}
    after = server.edit("Pin", "m-000002", onPin=on_pin, gate=gate).status
    assert (after.term, after.branch) == (before.term, before.branch)
    assert after.history == before.history


def test_history_says_how_the_head_moved_newest_first() -> None:
    server = Server()
    server.settle()
    server.edit("Pin", "m-000002")
    server.edit("Track")
    server.edit("Pin", "m-000001", onPin="Branch")
    moves = [(move.name, move.reason, move.term) for move in server.head.status.history]
    assert moves == [
        ("m-000001", "Branched", 4),
        ("m-000004", "Unpinned", 3),
        ("m-000002", "Pinned", 2),
        ("m-000004", "Advanced", 1),
    ]


def test_track_after_a_branch_follows_its_descendants_alone() -> None:
    server = Server()
    server.settle()
    server.edit("Pin", "m-000002", onPin="Branch")
    server.edit("Track")
    server.checkpoints.append(checkpoint(step=5, parent="m-000004"))
    assert current(server.settle()) == "m-000002"
    server.checkpoints.append(checkpoint(step=3, branch="b2", term=2, parent="m-000002"))
    assert current(server.settle()) == "m-b2-000003"
    assert server.head.status.term == 2


@pytest.mark.parametrize(
    ("pin", "reason", "stalled"),
    [
        ("m-000009", "CheckpointNotFound", "True"),
        ("other-000001", "WrongModel", "True"),
        ("m-000005", "CheckpointNotReady", "False"),
    ],
)
def test_a_pin_that_cannot_be_met_is_explained_and_changes_nothing(
    pin: str, reason: str, stalled: str
) -> None:
    unready = checkpoint(step=5, parent="m-000004", ready=False)
    server = Server([*MAIN, unready, checkpoint("other")])
    before = server.settle().status
    after = server.edit("Pin", pin, onPin="Branch").status
    assert server.reason() == f"False/{reason}"
    assert server.reason("Stalled") == f"{stalled}/{reason}"
    kept = ("current", "target", "term", "branch", "agreed", "history")
    assert [getattr(after, name) for name in kept] == [getattr(before, name) for name in kept]
    assert current(server.edit("Track")) == "m-000004"
    assert server.head.status.term == 1


def test_a_pin_that_failed_is_agreed_to_once_its_checkpoint_appears() -> None:
    server = Server()
    server.settle()
    server.edit("Pin", "m-000005")
    server.checkpoints.append(checkpoint(step=5, parent="m-000004"))
    assert (current(server.settle()), server.head.status.term) == ("m-000005", 2)


def test_a_pinned_checkpoint_that_is_deleted_stays_served() -> None:
    server = Server()
    server.settle()
    server.edit("Pin", "m-000002")
    server.checkpoints = [c for c in MAIN if c.metadata.name != "m-000002"]
    assert current(server.settle()) == "m-000002"
    assert server.reason() == "False/CheckpointNotFound"


def test_a_head_never_moves_back_because_its_checkpoint_is_not_to_be_found() -> None:
    server = Server()
    server.settle()
    server.checkpoints = MAIN[:3]
    assert current(server.settle()) == "m-000004"
    said = find(server.head.status.conditions, "Ready")
    assert said is not None
    assert said.message == "serves m-000004, whose Checkpoint was deleted"
    server.checkpoints = [*MAIN[:3], checkpoint(step=5, parent="m-000004")]
    assert current(server.settle()) == "m-000005"


GATE = {"metric": "reward/mean", "min": "0.6"}


def test_a_gate_lets_only_passing_checkpoints_through() -> None:
    better = checkpoint(step=5, parent="m-000004", reward="0.7")
    worse = checkpoint(step=6, parent="m-000005", reward="0.2")
    unmeasured = checkpoint(step=7, parent="m-000006")
    server = Server([*MAIN, better, worse, unmeasured], gate=GATE)
    settled = server.settle()
    assert current(settled) == "m-000005"
    assert settled.status.latest is not None
    assert settled.status.latest.name == "m-000007"
    found = find(settled.status.conditions, "Ready")
    assert found is not None
    assert "m-000007 has no reward/mean yet: it comes with the next step" in found.message
    assert "The newest that has it is m-000006 with 0.2" in found.message
    server.checkpoints = [*MAIN, better, worse]
    found = find(server.settle().status.conditions, "Ready")
    assert found is not None
    assert "m-000006 is below reward/mean 0.6" in found.message


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        ("eval/reward/mean", "has no eval/reward/mean, only reward/mean. None of the newest 6"),
        ("loss/sum", "has no loss/sum of its own: that is of the step that made it"),
    ],
)
def test_a_gate_whose_metric_no_checkpoint_has_says_which_there_are(metric: str, why: str) -> None:
    better = [checkpoint(step=n, parent=f"m-{n - 1:06d}", reward="0.7") for n in (5, 6)]
    server = Server([*MAIN, *better], gate={"metric": metric, "min": "0.6"})
    found = find(server.settle().status.conditions, "Ready")
    assert found is not None
    assert f"m-000006 {why}" in found.message
    assert "they have reward/mean" in found.message


def test_a_gate_that_is_raised_does_not_move_the_head_back() -> None:
    server = Server()
    server.settle()
    assert current(server.edit("Track", gate=GATE)) == "m-000004"


def test_a_head_waits_for_every_ready_rollout_and_for_one_at_least() -> None:
    server = Server()
    adapter = adapter_name("m", digest("m-000004"))
    server.rollouts = []
    server.once()
    server.once()
    assert server.reason() == "False/RolloutsNotReady"
    had, has_not = frozenset({adapter}), frozenset({"base"})
    server.rollouts = [SamplerPod("a", True, had), SamplerPod("b", True, has_not)]
    server.once()
    assert (current(server.head), server.reason()) == (None, "False/Moving")
    # One that is not ready serves nobody: it must load the adapter before it becomes so.
    server.rollouts = [SamplerPod("a", True, had), SamplerPod("b", False)]
    server.once()
    assert current(server.head) == "m-000004"
    assert [pod.name for pod in server.head.status.pods] == ["a"]


def test_a_rollout_that_cannot_load_it_is_named() -> None:
    server = Server()
    server.rollouts = [SamplerPod("a", True, None, "the digest is wrong")]
    server.once()
    server.once()
    assert server.reason() == "False/ServeFailed"


def test_without_wanted_rollouts_the_head_moves_on_its_own() -> None:
    server = Server()
    server.model = model(rollout={"replicas": 0})
    server.rollouts = []
    assert current(server.settle()) == "m-000004"
    # Its base is not even known.
    assert server.reason() == "False/SourceNotResolved"
    resolved = {"uri": "volume://b", "digest": digest("b")}
    server.model = model(rollout={"replicas": 0}, status={"resolved": resolved})
    server.settle()
    assert server.reason() == "True/Idle"
    server.edit("Pin", "m-000002")
    assert server.reason() == "True/Pinned"


def test_a_fork_serves_its_root_until_it_has_a_checkpoint_and_can_be_pinned_to_it() -> None:
    server = Server([])
    server.root = Point("origin-000005", 5, digest("origin-000005"))
    settled = server.settle()
    assert settled.status.current is not None
    assert (settled.status.current.name, settled.status.current.step) == ("origin-000005", 5)
    server.checkpoints = [checkpoint(step=6, parent="origin-000005")]
    assert current(server.settle()) == "m-000006"
    assert current(server.edit("Pin", "origin-000005")) == "origin-000005"


def test_a_fork_whose_origin_is_not_known_waits() -> None:
    server = Server([])
    server.root = None
    server.settle()
    assert server.reason() == "False/SourceNotResolved"
    assert server.head.status.current is None


def test_a_head_that_was_deleted_and_made_again_finds_branch_and_term_of_its_checkpoints() -> None:
    branch = checkpoint(step=3, branch="b2", term=2, parent="m-000002")
    settled = Server([*MAIN, branch]).settle()
    assert (current(settled), settled.status.term) == ("m-b2-000003", 2)


def test_a_trainer_that_is_ahead_is_overtaken_once() -> None:
    server = Server()
    server.settle()
    server.trainer_term = 5
    assert server.settle().status.term == 6


def test_another_head_serves_without_moving_training() -> None:
    leader = head(status={"term": 3, "branch": "main", "agreed": tracks(1)})
    canary = Server(name="canary")
    adapter = adapter_name("m", digest("m-000002"))
    canary.head = head("m", "Pin", "m-000002", name="canary", onPin="Branch")
    for _ in range(3):
        view = canary.view()
        rollouts = [SamplerPod("pod", True, frozenset({adapter}))]
        view = replace(view, named=MAIN[1], leader=leader, rollouts=rollouts)
        canary.head = canary.head.model_copy(update={"status": decide(view, NOW).status})
    assert current(canary.head) == "m-000002"
    assert (canary.head.status.term, canary.head.status.branch) == (3, "main")
    assert not head_request.leads(canary.head)


def adapters(*names: str) -> frozenset[str]:
    return frozenset({"base", *(adapter_name("m", digest(name)) for name in names)})


def test_of_two_pins_in_quick_succession_the_second_is_served_and_each_is_a_cause() -> None:
    server = Server()
    server.settle()
    for generation, pin in ((2, "m-000001"), (3, "m-000002")):
        edited = head("m", "Pin", pin, generation=generation)
        server.head = edited.model_copy(update={"status": server.head.status})
        server.once()
    settled = server.settle()
    assert (current(settled), settled.status.term) == ("m-000002", 3)
    assert [move.name for move in settled.status.history] == ["m-000002", "m-000004"]


def test_a_pin_while_all_rollouts_are_down_holds_training_and_is_served_when_they_are_back() -> (
    None
):
    server = Server()
    server.settle()
    server.rollouts = []
    pinned = server.edit("Pin", "m-000002")
    assert (current(pinned), server.reason()) == ("m-000004", "False/RolloutsNotReady")
    assert (pinned.status.term, head_request.paused(pinned)) == (2, True)
    server.rollouts = [SamplerPod("pod", ready=False)]
    assert current(server.settle()) == "m-000002"


def test_the_status_lists_what_each_pod_confirmed_and_no_more() -> None:
    server = Server()
    server.settle()
    serving_it, behind = adapters("m-000004"), adapters("m-000003")
    server.checkpoints.append(checkpoint(step=5, parent="m-000004"))
    server.rollouts = [
        SamplerPod("a", True, adapters("m-000004", "m-000005")),
        SamplerPod("b", True, serving_it),
        SamplerPod("c", True, behind),
        SamplerPod("d", False),
    ]
    server.once()
    shown = {pod.name: pod.digest for pod in server.head.status.pods}
    assert shown == {"a": digest("m-000005"), "b": digest("m-000004")}


def test_a_pod_that_lost_the_adapter_makes_the_head_move_again() -> None:
    server = Server()
    server.settle()
    server.rollouts = [SamplerPod("pod", True, frozenset({"base"}))]
    server.once()
    assert (current(server.head), server.reason()) == ("m-000004", "False/Moving")
    assert server.head.status.pods == []


ALTERED = Problem(detail="a file is altered", reason="FileAltered", remedy="Restore it")


def refusing(*names: str, keeps: str = "m-000004") -> list[SamplerPod]:
    refused = {adapter_name("m", digest(name)): ALTERED for name in names}
    return [SamplerPod("pod", True, adapters(keeps), refused=refused)]


def test_a_pin_whose_bytes_are_refused_is_stalled_and_what_was_served_stays() -> None:
    server = Server()
    server.settle()
    server.rollouts = refusing("m-000002")
    edited = head("m", "Pin", "m-000002", generation=2)
    server.head = edited.model_copy(update={"status": server.head.status})
    for _ in range(3):
        server.once()
    assert (current(server.head), server.reason("Stalled")) == ("m-000004", "True/FileAltered")
    found = find(server.head.status.conditions, "Ready")
    assert found is not None
    assert "a file is altered. Restore it; m-000004 stays served" in found.message


def test_a_tracking_head_passes_over_a_checkpoint_whose_bytes_were_refused() -> None:
    damaged = checkpoint(step=5, parent="m-000004", stalled="FileAltered")
    server = Server([*MAIN, damaged])
    assert current(server.settle()) == "m-000004"
    server.checkpoints.append(checkpoint(step=6, parent="m-000005"))
    assert current(server.settle()) == "m-000006"


def test_a_head_that_aimed_at_refused_bytes_gives_them_up_and_never_moves_back() -> None:
    server = Server()
    server.settle()
    server.checkpoints.append(checkpoint(step=5, parent="m-000004"))
    server.once()
    assert server.head.status.target == NameOnly(name="m-000005")
    server.checkpoints[-1] = checkpoint(step=5, parent="m-000004", stalled="FileAltered")
    settled = server.settle()
    assert (current(settled), server.reason()) == ("m-000004", "True/Tracking")
    # What is served stays the head's even when its own bytes are refused later.
    server.checkpoints[3] = checkpoint(step=4, parent="m-000003", stalled="FileAltered")
    settled = server.settle()
    assert (current(settled), server.reason("Stalled")) == ("m-000004", "True/FileAltered")


def test_after_a_branch_from_refused_bytes_track_serves_the_newest_before_it() -> None:
    server = Server()
    server.settle()
    damaged = checkpoint(step=3, parent="m-000002", stalled="FileAltered")
    server.checkpoints[2] = damaged
    server.refused = {adapter_name("m", digest("m-000003")): ALTERED}
    server.edit("Pin", "m-000003", onPin="Branch")
    assert current(server.edit("Track")) == "m-000002"


def test_a_target_that_is_deleted_before_it_is_served_leaves_what_is_served() -> None:
    server = Server()
    server.settle()
    server.rollouts = []
    server.edit("Pin", "m-000002")
    server.checkpoints = [c for c in MAIN if c.metadata.name != "m-000002"]
    server.rollouts = [SamplerPod("pod", ready=True)]
    settled = server.settle()
    assert (current(settled), server.reason()) == ("m-000004", "False/CheckpointNotFound")
    assert settled.status.pods == [PodDigest(name="pod", digest=digest("m-000004"))]


def test_a_pin_to_an_object_that_lies_changes_nothing() -> None:
    liar = checkpoint(step=5, parent="m-000004", uri="volume://checkpoints/../../etc")
    server = Server([*MAIN, liar])
    before = server.settle().status
    after = server.edit("Pin", "m-000005", onPin="Branch").status
    assert server.reason("Stalled") == "True/InvalidURI"
    assert (after.term, after.target, after.branch) == (before.term, before.target, "main")


def test_a_head_says_under_what_slug_it_is_sampled() -> None:
    server = Server(name="canary")
    server.others = {"leader": head(status={"term": 1}), "gateway_url": "http://gateway"}
    endpoint = server.settle().status.endpoint
    assert endpoint is not None
    assert (endpoint.slug, endpoint.url) == ("canary", "http://gateway")


BEFORE = head(status={"term": 1, "target": {"name": "m-000003"}})


@pytest.mark.parametrize(
    ("others", "reason", "remedy"),
    [
        ({"namesake": True}, "NameTaken", "create it under another name"),
        ({"heads": [BEFORE]}, "TooManyHeads", "spec.rollout.maxAdapters"),
    ],
)
def test_a_second_head_that_cannot_be_served_says_what_to_do(
    others: dict[str, Any], reason: str, remedy: str
) -> None:
    server = Server(name="canary")
    server.model = model(rollout={"maxAdapters": 1})
    server.others = {"leader": BEFORE, **others}
    settled = server.settle()
    assert server.reason("Stalled") == f"True/{reason}"
    found = find(settled.status.conditions, "Ready")
    assert found is not None
    assert remedy in found.message


def test_two_heads_of_a_model_each_serve_what_they_ask_for() -> None:
    leader = Server().settle()
    canary = Server(name="canary", mode="Pin", pin="m-000002", onPin="Pause")
    canary.others = {"leader": leader}
    settled = canary.settle()
    assert (current(leader), current(settled)) == ("m-000004", "m-000002")
    assert settled.status.term == leader.status.term
    assert not head_request.paused(leader)


def test_history_keeps_the_last_twenty_moves() -> None:
    server = Server()
    server.settle()
    for turn in range(15):
        server.edit("Pin", f"m-00000{1 + turn % 3}")
        server.edit("Track")
    assert len(server.head.status.history) == 20


def test_what_was_agreed_survives_its_written_form() -> None:
    for agreed in (head_request.pin("m-000002", "Branch", 7), head_request.track(8)):
        written = CheckpointHeadStatus(agreed=agreed).wire()
        assert CheckpointHeadStatus.model_validate(written).agreed == agreed
    assert head_request.track(8).wire() == {"generation": 8, "mode": "Track"}
