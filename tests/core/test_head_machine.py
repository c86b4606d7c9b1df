"""Whatever edits, commits, restarts and damage come, a model's heads keep their invariants."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.core.objects import NOW, checkpoint, commit, head, model

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead, CheckpointHeadStatus
from espalier.api.wire.problem import Problem
from espalier.core.checkpoints import checkpoint as checkpoints
from espalier.core.checkpoints.commits import Accepted, judge
from espalier.core.head import head_request, head_view, served_adapters
from espalier.core.head.head import HISTORY, decide
from espalier.core.head.head_request import TRACK
from espalier.core.head.head_view import HeadView, SamplerPod
from espalier.core.lineage.lineage import BASE_POINT, Lineage, Point
from espalier.core.lineage.lineage_index import grow
from espalier.core.names import adapter_name

FOREIGN = checkpoint("other", 3)
ON_PIN = ["Pause", "Branch", "Continue"]
STABLE, CANARY = "m", "canary"
HEADS = st.sampled_from([STABLE, STABLE, CANARY])
PODS = ("a", "b")
ALTERED = Problem(detail="a file is altered", reason="FileAltered")


class HeadMachine(RuleBasedStateMachine):
    """Two heads, their tree, two rollout pods, and trainers of every term ever assigned."""

    def __init__(self) -> None:
        super().__init__()
        self.checkpoints: dict[str, Checkpoint] = {}
        # Every name and digest that there ever was: what is deleted may still be served.
        self.ever: dict[str, set[str]] = {}
        self.broken: set[str] = set()
        self.loaded: dict[str, frozenset[str] | None] = dict.fromkeys(PODS)
        self.refused: dict[str, frozenset[str]] = dict.fromkeys(PODS, frozenset())
        # Where the trainer of each term stands: one that was left behind may still commit.
        self.trainers: dict[int, tuple[str, Point]] = {}
        self.index = 0
        self.heads: dict[str, CheckpointHead] = {n: head(name=n) for n in (STABLE, CANARY)}

    @initialize()
    def begin(self) -> None:
        for name in self.heads:
            self.reconcile(name)

    # --- the world ---

    @property
    def leader(self) -> CheckpointHead:
        return self.heads[STABLE]

    @property
    def lineage(self) -> Lineage:
        return grow(self.checkpoints.values(), BASE_POINT)

    @property
    def desired(self) -> tuple[served_adapters.DesiredAdapters, ...]:
        return served_adapters.desired_adapters("m", list(self.heads.values()), self.lineage)

    def adapter(self, name: str) -> str:
        return adapter_name("m", self.checkpoints[name].spec.digest)

    def view(self, name: str) -> HeadView:
        own = self.heads[name]
        ref = own.spec.checkpoint_ref
        named = {**self.checkpoints, FOREIGN.metadata.name: FOREIGN}
        rollouts = [
            SamplerPod(
                pod, True, self.loaded[pod], refused=dict.fromkeys(self.refused[pod], ALTERED)
            )
            for pod in PODS
        ]
        return HeadView(
            own,
            model(),
            self.lineage,
            named=named.get(ref.name) if ref else None,
            leader=None if name == STABLE else self.leader,
            rollouts=rollouts,
        )

    def edit(self, name: str, mode: str, pin: str = "", **spec: Any) -> None:
        old = self.heads[name]
        generation = old.metadata.generation + 1
        changed = head("m", mode, pin, name=name, generation=generation, **spec)
        self.heads[name] = changed.model_copy(update={"status": old.status})

    # --- what may happen ---

    @rule(name=HEADS, min_reward=st.sampled_from([None, "0.3", "0.9"]))
    def track(self, name: str, min_reward: str | None) -> None:
        gate = {"gate": {"metric": "reward/mean", "min": min_reward}} if min_reward else {}
        self.edit(name, "Track", **gate)

    @rule(name=HEADS, choice=st.integers(0, 50), on_pin=st.sampled_from(ON_PIN))
    def pin(self, name: str, choice: int, on_pin: str) -> None:
        names = [*sorted(self.checkpoints), FOREIGN.metadata.name, "m-999999"]
        self.edit(name, "Pin", names[choice % len(names)], onPin=on_pin)

    @rule()
    def assign(self) -> None:
        """The operator tells the trainer; under the same term it keeps its place."""
        start = head_request.training_point(self.leader, self.lineage)
        if start is not None and start.term not in self.trainers:
            self.trainers[start.term] = (start.branch, start.base)

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
    @rule(name=HEADS, choice=st.integers(0, 50), on_pin=st.sampled_from(ON_PIN))
    def roll_back_and_return(self, name: str, choice: int, on_pin: str) -> None:
        pin = sorted(self.checkpoints)[choice % len(self.checkpoints)]
        self.edit(name, "Pin", pin, onPin=on_pin)
        self.settle()
        self.assign()
        self.edit(name, "Track")
        self.settle()

    def commit(self, term: int, reward: str) -> None:
        branch, at = self.trainers[term]
        self.index += 1
        made = commit(
            at.step + 1,
            branch=branch,
            term=term,
            parent=at.name,
            index=self.index,
            variant=f"/{term}",
        ).model_copy(update={"parent": at.digest})
        self.trainers[term] = (branch, Point(made.name, made.step, made.digest))
        if not isinstance(judge(made, "m", self.lineage, self.leader), Accepted):
            return
        live = branch == self.leader.status.branch and not head_request.paused(self.leader)
        assert not live or term >= self.leader.status.term
        self.checkpoints[made.name] = checkpoint(
            "m",
            made.step,
            branch=branch,
            term=term,
            parent=at.name,
            reward=reward,
            content=f"{made.name}/{term}",
        )
        assert self.checkpoints[made.name].spec.digest == made.digest
        self.ever.setdefault(made.name, set()).add(made.digest)

    @precondition(lambda self: len(self.checkpoints) > 1)
    @rule(choice=st.integers(0, 50))
    def delete(self, choice: int) -> None:
        """Somebody deletes a checkpoint from which nothing is being trained."""
        tips = {line[-1].metadata.name for line in self.lineage.by_branch.values()}
        inner = sorted(set(self.checkpoints) - tips)
        if inner:
            gone = inner[choice % len(inner)]
            del self.checkpoints[gone]
            self.broken.discard(gone)

    @precondition(lambda self: self.checkpoints)
    @rule(choice=st.integers(0, 50))
    def damage(self, choice: int) -> None:
        """Bytes change on the volume: whoever loads them refuses them from now on."""
        self.broken.add(sorted(self.checkpoints)[choice % len(self.checkpoints)])

    @precondition(lambda self: self.broken)
    @rule()
    def repair(self) -> None:
        self.broken.clear()

    @rule(name=HEADS)
    def reconcile(self, name: str) -> None:
        """One decision, checked against the one before, then written."""
        before = self.heads[name].status
        status = decide(self.view(name), NOW).status
        self.check_step(before, status)
        self.heads[name] = self.heads[name].model_copy(update={"status": status})

    @rule(pod=st.sampled_from(PODS))
    def load(self, pod: str) -> None:
        """A pod is asked for what the heads want, and says what it refuses."""
        broken = {self.adapter(name) for name in self.broken}
        refused: set[str] = set()
        while newly := broken.intersection(served_adapters.choose(self.desired, refused)):
            refused |= newly
        self.refused[pod] = frozenset(refused)
        self.loaded[pod] = frozenset({"base", *served_adapters.choose(self.desired, refused)})
        self.report()

    def report(self) -> None:
        """The Checkpoints say what loading found."""
        lineage = self.lineage
        for name, found in self.checkpoints.items():
            if name not in self.broken and head_view.is_ready(found):
                continue
            adapter = adapter_name("m", found.spec.digest)
            refused = any(adapter in self.refused[pod] for pod in PODS)
            loaded = any(adapter in (self.loaded[pod] or ()) for pod in PODS)
            evidence = checkpoints.Evidence(ALTERED if refused else None, verified=loaded)
            status = checkpoints.decide(found, [], lineage, NOW, evidence)
            kept = status.model_copy(update={"metrics": found.status.metrics})
            self.checkpoints[name] = found.model_copy(update={"status": kept})

    @rule(pod=st.sampled_from(PODS))
    def restart(self, pod: str) -> None:
        self.loaded[pod], self.refused[pod] = None, frozenset()

    @rule(pod=st.sampled_from(PODS), choice=st.integers(0, 9))
    def evict(self, pod: str, choice: int) -> None:
        """The engine drops an adapter, which shows when it is read back."""
        held = sorted((self.loaded[pod] or frozenset()) - {"base"})
        if held:
            gone = held[choice % len(held)]
            self.loaded[pod] = (self.loaded[pod] or frozenset()) - {gone}

    @rule()
    def settle(self) -> None:
        """Left alone, both heads arrive: nothing more changes, and they serve their targets."""
        for _ in range(5):
            for name in self.heads:
                self.reconcile(name)
            for pod in PODS:
                self.load(pod)
        before = {name: found.status for name, found in self.heads.items()}
        for name in self.heads:
            self.reconcile(name)
            self.check_settled(before[name], self.heads[name].status)

    # --- what must hold ---

    def check_settled(self, before: CheckpointHeadStatus, after: CheckpointHeadStatus) -> None:
        assert after == before
        assert after.target is not None
        if after.current is None:
            assert after.target.name in self.broken
            return
        agreed = after.agreed
        if after.current.name != after.target.name:
            # Only a pin insists on bytes that nobody can load.
            assert after.target.name in self.broken
            assert agreed is not None
            assert agreed.mode == "Pin"

    def check_step(self, before: CheckpointHeadStatus, after: CheckpointHeadStatus) -> None:
        assert after.term >= before.term
        if after.branch != before.branch and before.term:
            assert after.term > before.term
            assert after.branch in (f"b{after.term}", self.leader.status.branch)
        if after.current != before.current:
            assert before.target is not None
            assert after.current is not None
            assert after.current.name == before.target.name
            adapter = adapter_name("m", after.current.digest)
            assert all(adapter in (loaded or ()) for loaded in self.loaded.values())
            if before.current is not None:
                assert after.previous is not None
                assert after.previous.name == before.current.name
                self.check_direction(before, after)

    def check_direction(self, before: CheckpointHeadStatus, after: CheckpointHeadStatus) -> None:
        """Unless it is asked to, a head never moves back along the line that it follows."""
        agreed = after.agreed
        assert before.current is not None
        assert after.current is not None
        base = head_request.ref_name(after.branch_base)
        same = (before.agreed, before.branch) == (after.agreed, after.branch)
        on_line = self.lineage.on_line(before.current.name, after.branch, base)
        if agreed is not None and agreed.mode == TRACK and same and on_line and self.tracked:
            assert after.current.step > before.current.step

    @property
    def tracked(self) -> bool:
        """Whether no head is still on its way from a pin."""
        return all(
            found.status.history and found.status.history[0].reason in ("Advanced", "Unpinned")
            for found in self.heads.values()
        )

    @invariant()
    def current_is_the_models_own_with_the_digest_of_its_checkpoint(self) -> None:
        for found in self.heads.values():
            current = found.status.current
            if current is not None and current.name:
                assert current.digest in self.ever[current.name]

    @invariant()
    def history_is_bounded_and_starts_with_the_current_one(self) -> None:
        for found in self.heads.values():
            status = found.status
            assert len(status.history) <= HISTORY
            if status.current is not None:
                assert status.history[0].name == status.current.name

    @invariant()
    def only_pins_that_can_be_met_are_agreed_to(self) -> None:
        for found in self.heads.values():
            agreed = found.status.agreed
            assert agreed is None or not agreed.name or agreed.name in self.ever

    @invariant()
    def what_a_pod_is_shown_to_serve_it_has_confirmed(self) -> None:
        for found in self.heads.values():
            digests = {d for sha in self.ever.values() for d in sha} | {""}
            assert {pod.digest for pod in found.status.pods} <= digests

    @invariant()
    def inside_a_branch_steps_are_a_line(self) -> None:
        for line in self.lineage.by_branch.values():
            steps = [c.spec.step for c in line]
            assert steps == sorted(set(steps))
            terms = [c.spec.term for c in line]
            assert terms == sorted(terms)
            for parent, child in itertools.pairwise(line):
                assert child.spec.parent_ref is not None
                if child.spec.step == parent.spec.step + 1:
                    assert child.spec.parent_ref.name == parent.metadata.name

    @invariant()
    def only_a_pause_of_the_leading_head_holds_training(self) -> None:
        agreed = self.leader.status.agreed
        held = head_request.training_point(self.leader, self.lineage) is None
        if self.leader.status.term:
            assert held == (agreed is not None and agreed.on_pin == "Pause")


TestHead = HeadMachine.TestCase
TestHead.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
