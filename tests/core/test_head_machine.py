"""Whatever edits, commits, restarts and crashes come, the head keeps its invariants."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.core.objects import NOW, checkpoint, commit, head, model

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead, CheckpointHeadStatus
from espalier.core import request, serving
from espalier.core.commits import Accepted, judge
from espalier.core.head import HISTORY, decide
from espalier.core.head_view import HeadView, Rollout
from espalier.core.lineage import BASE_POINT, Lineage, Point, grow
from espalier.core.names import adapter_name

FOREIGN = checkpoint("other", 3)
ON_PIN = ["Pause", "Branch", "Continue"]


class HeadMachine(RuleBasedStateMachine):
    """A head, its tree, two rollout pods, and trainers of every epoch that was ever assigned."""

    def __init__(self) -> None:
        super().__init__()
        self.checkpoints: dict[str, Checkpoint] = {}
        self.loaded: dict[str, frozenset[str] | None] = {"a": None, "b": None}
        # Where the trainer of each epoch stands: one that was left behind may still commit.
        self.trainers: dict[int, tuple[str, Point]] = {}
        self.adapter: str | None = None
        self.index = 0
        self.head: CheckpointHead = head()

    @initialize()
    def begin(self) -> None:
        self.reconcile()

    # --- the world ---

    @property
    def lineage(self) -> Lineage:
        return grow(self.checkpoints.values(), BASE_POINT)

    def view(self) -> HeadView:
        ref = self.head.spec.checkpoint_ref
        named = {**self.checkpoints, FOREIGN.metadata.name: FOREIGN}
        return HeadView(
            self.head,
            model(),
            self.lineage,
            named=named.get(ref.name) if ref else None,
            rollouts=[Rollout(name, True, loaded) for name, loaded in self.loaded.items()],
        )

    def edit(self, mode: str, pin: str = "", **spec: Any) -> None:
        changed = head("m", mode, pin, generation=self.head.metadata.generation + 1, **spec)
        self.head = changed.model_copy(update={"status": self.head.status})

    # --- what may happen ---

    @rule(min_reward=st.sampled_from([None, "0.3", "0.9"]))
    def track(self, min_reward: str | None) -> None:
        gate = {"gate": {"metric": "reward/mean", "min": min_reward}} if min_reward else {}
        self.edit("Track", **gate)

    @rule(choice=st.integers(0, 50), on_pin=st.sampled_from(ON_PIN))
    def pin(self, choice: int, on_pin: str) -> None:
        names = [*sorted(self.checkpoints), FOREIGN.metadata.name, "m-999999"]
        self.edit("Pin", names[choice % len(names)], onPin=on_pin)

    @rule()
    def assign(self) -> None:
        """The operator tells the trainer; under the same epoch it keeps its place."""
        start = request.training_point(self.head, self.lineage)
        if start is not None and start.epoch not in self.trainers:
            self.trainers[start.epoch] = (start.branch, start.base)

    @precondition(lambda self: self.trainers)
    @rule(reward=st.sampled_from(["0.1", "0.5", "0.95"]))
    def train(self, reward: str) -> None:
        """The latest trainer commits."""
        self.commit(max(self.trainers), reward)

    @precondition(lambda self: len(self.trainers) > 1)
    @rule(choice=st.integers(0, 9))
    def train_left_behind(self, choice: int) -> None:
        """A trainer that a rollback left behind commits."""
        left = sorted(self.trainers)[:-1]
        self.commit(left[choice % len(left)], "0.99")

    @rule(steps=st.integers(1, 3))
    def work(self, steps: int) -> None:
        """Training goes on undisturbed for a while."""
        self.settle()
        self.assign()
        for _ in range(steps if self.trainers else 0):
            self.train("0.5")
            self.settle()

    @precondition(lambda self: self.checkpoints)
    @rule(choice=st.integers(0, 50), on_pin=st.sampled_from(ON_PIN))
    def roll_back_and_return(self, choice: int, on_pin: str) -> None:
        self.edit("Pin", sorted(self.checkpoints)[choice % len(self.checkpoints)], onPin=on_pin)
        self.settle()
        self.assign()
        self.edit("Track")
        self.settle()

    def commit(self, epoch: int, reward: str) -> None:
        branch, at = self.trainers[epoch]
        self.index += 1
        made = commit(
            at.step + 1,
            branch=branch,
            epoch=epoch,
            parent=at.name,
            index=self.index,
            variant=f"/{epoch}",
        ).model_copy(update={"parent": at.digest})
        self.trainers[epoch] = (branch, Point(made.name, made.step, made.digest))
        if not isinstance(judge(made, "m", self.lineage, self.head), Accepted):
            return
        live = branch == self.head.status.branch and not request.paused(self.head)
        assert not live or epoch >= self.head.status.epoch
        new = checkpoint("m", made.step, branch=branch, epoch=epoch, parent=at.name, reward=reward)
        spec = new.spec.model_copy(update={"digest": made.digest})
        self.checkpoints[made.name] = new.model_copy(update={"spec": spec})

    @rule()
    def reconcile(self) -> None:
        """One decision, checked against the one before, then written."""
        before = self.head.status
        decision = decide(self.view(), NOW)
        self.check_step(before, decision.status)
        self.head = self.head.model_copy(update={"status": decision.status})
        wishes = serving.wishes("m", [self.head], self.lineage)
        self.adapter = wishes[0].adapter if wishes else None

    @rule(pod=st.sampled_from(["a", "b"]))
    def load(self, pod: str) -> None:
        if self.adapter is not None:
            self.loaded[pod] = frozenset({self.adapter, "base"})

    @rule(pod=st.sampled_from(["a", "b"]))
    def restart(self, pod: str) -> None:
        self.loaded[pod] = None

    @rule()
    def settle(self) -> None:
        """Left alone, the head arrives: nothing more changes, and it serves its target."""
        for _ in range(4):
            self.reconcile()
            self.load("a")
            self.load("b")
        before = self.head.status
        self.reconcile()
        assert self.head.status == before
        assert before.current is not None
        assert before.target is not None
        assert before.current.name == before.target.name

    # --- what must hold ---

    def check_step(self, before: CheckpointHeadStatus, after: CheckpointHeadStatus) -> None:
        assert after.epoch >= before.epoch
        if after.branch != before.branch:
            assert after.epoch > before.epoch
            assert after.branch == f"b{after.epoch}"
        if after.current != before.current:
            assert before.target is not None
            assert after.current is not None
            assert after.current.name == before.target.name
            adapter = adapter_name("m", after.current.digest)
            assert all(adapter in (loaded or ()) for loaded in self.loaded.values())
            if before.current is not None:
                assert after.previous is not None
                assert after.previous.name == before.current.name

    @invariant()
    def current_is_the_models_own_with_the_digest_of_its_checkpoint(self) -> None:
        current = self.head.status.current
        if current is None or not current.name:
            return
        assert current.name in self.checkpoints
        assert self.checkpoints[current.name].spec.digest == current.digest

    @invariant()
    def history_is_bounded_and_starts_with_the_current_one(self) -> None:
        status = self.head.status
        assert len(status.history) <= HISTORY
        if status.current is not None:
            assert status.history[0].name == status.current.name

    @invariant()
    def only_pins_that_can_be_met_are_agreed_to(self) -> None:
        agreed = request.Request.parse(self.head.status.epoch_cause)
        assert agreed is None or not agreed.name or agreed.name in self.checkpoints

    @invariant()
    def inside_a_branch_steps_are_a_line(self) -> None:
        for line in self.lineage.by_branch.values():
            steps = [c.spec.step for c in line]
            assert steps == list(range(steps[0], steps[0] + len(steps)))
            epochs = [c.spec.epoch for c in line]
            assert epochs == sorted(epochs)
            for parent, child in itertools.pairwise(line):
                assert child.spec.parent_ref is not None
                assert child.spec.parent_ref.name == parent.metadata.name

    @invariant()
    def only_a_pause_holds_training(self) -> None:
        agreed = request.Request.parse(self.head.status.epoch_cause)
        held = request.training_point(self.head, self.lineage) is None
        if self.head.status.epoch:
            assert held == (agreed is not None and agreed.on_pin == "Pause")


TestHead = HeadMachine.TestCase
TestHead.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
