"""Stories that must end the same whatever happens to the operator on the way.

What a user does next depends on what the last edit led to, so that a disturbed run takes the same
edits in the same order, only later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.simulation.world import World, head_spec, model_spec, run_spec

from espalier.core.names import importer_name

Outcome = dict[str, Any]
UNREADABLE = {"detail": "no config.json", "reason": "BaseUnreadable"}


@dataclass(frozen=True)
class Scenario:
    """``story`` is what users do and wait for; ``compared`` is what of the end must be equal.

    ``deletes``: checkpoints may go without a user having deleted them one by one.
    """

    name: str
    story: Callable[[World], Awaitable[None]]
    compared: Callable[[Outcome], Outcome] = lambda outcome: outcome
    deletes: bool = False


async def train(w: World) -> None:
    await w.apply("TrainableModel", "tiny", model_spec())
    await w.apply("TrainingRun", "digits", run_spec("tiny", 2))
    await w.until(
        lambda: w.succeeded("digits", 2) and w.serves("tiny", "tiny-000002"), "the run ends"
    )
    await w.until(lambda: not w.kubelet.pods("trainer"), "the trainer is freed")


async def pause(w: World) -> None:
    await train(w)
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", "tiny-000001"))
    await w.until(lambda: w.serves("tiny", "tiny-000001"), "the pin is served")
    await w.apply("TrainingRun", "digits", run_spec("tiny", 4))
    await w.until(
        lambda: w.condition("TrainingRun", "digits", "Ready")["reason"] == "HeadPinned", "paused"
    )
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
    await w.until(lambda: w.succeeded("digits", 4) and w.serves("tiny", "tiny-000004"), "goes on")


async def branch(w: World) -> None:
    await train(w)
    pin = head_spec("tiny", "Pin", "tiny-000001", onPin="Branch")
    await w.apply("CheckpointHead", "tiny", pin)
    # An operator that hears of the pin last trains on first, and does so on main.
    await w.until(lambda: w.serves("tiny", "tiny-000001"), "the pin is served")
    await w.apply("TrainingRun", "digits", run_spec("tiny", 4))
    await w.until(lambda: w.succeeded("digits", 4) and w.serves("tiny", "tiny-000001"), "branched")
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
    await w.until(lambda: w.serves("tiny", "tiny-b2-000003"), "Track follows the branch")


async def story(w: World) -> None:
    """Train, roll back, branch, train on, return to Track, hold, go on."""
    await branch(w)
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", "tiny-000002"))
    await w.until(lambda: w.serves("tiny", "tiny-000002"), "held")
    await w.apply("TrainingRun", "digits", run_spec("tiny", 5))
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
    await w.until(
        lambda: w.succeeded("digits", 5) and w.serves("tiny", "tiny-b2-000004"), "went on"
    )


async def continue_(w: World) -> None:
    await train(w)
    pin = head_spec("tiny", "Pin", "tiny-000001", onPin="Continue")
    await w.apply("CheckpointHead", "tiny", pin)
    await w.until(lambda: w.serves("tiny", "tiny-000001"), "the pin is served")
    await w.apply("TrainingRun", "digits", run_spec("tiny", 4))
    await w.until(lambda: w.succeeded("digits", 4), "training goes on")
    # A run may have ended before its last Checkpoint is Ready to be served.
    await w.until(
        lambda: w.condition("Checkpoint", "tiny-000004", "Ready")["status"] == "True", "committed"
    )
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
    await w.until(lambda: w.serves("tiny", "tiny-000004"), "Track follows")


async def two_pins(w: World) -> None:
    """The second edit comes before anybody can have seen the first."""
    await train(w)
    first = head_spec("tiny", "Pin", "tiny-000002", onPin="Branch")
    second = head_spec("tiny", "Pin", "tiny-000001", onPin="Branch")
    await w.apply("CheckpointHead", "tiny", first)
    await w.apply("CheckpointHead", "tiny", second)
    await w.until(lambda: w.serves("tiny", "tiny-000001"), "the second pin is served")
    await w.apply("TrainingRun", "digits", run_spec("tiny", 3))
    await w.until(lambda: w.succeeded("digits", 3), "one step on the branch")


async def pin_in_mid_step(w: World) -> None:
    """The trainer commits just as the head leaves its branch."""

    async def pin() -> None:
        # How many more steps the old line gets is a matter of speed: none here.
        w.trains = False
        spec = head_spec("tiny", "Pin", "tiny-000001", onPin="Branch")
        await w.apply("CheckpointHead", "tiny", spec)

    w.after_step[3] = pin
    await w.apply("TrainableModel", "tiny", model_spec())
    await w.apply("TrainingRun", "digits", run_spec("tiny", 5))
    await w.until(lambda: w.assigned("tiny") == 2, "the trainer is told")
    w.trains = True
    await w.until(lambda: w.succeeded("digits", 5), "the run ends")


async def pod_restarts(w: World) -> None:
    w.trains = False
    await w.apply("TrainableModel", "tiny", model_spec())
    await w.apply("TrainingRun", "digits", run_spec("tiny", 3))
    await w.until(
        lambda: w.condition("TrainingRun", "digits", "Ready")["reason"] == "Training", "it trains"
    )
    for role in ("trainer", "rollout", "runner"):
        await w.kubelet.restart(role)
        await w.until(
            lambda: (
                w.condition("TrainingRun", "digits", "Ready")["reason"] == "Training"
                and w.condition("CheckpointHead", "tiny", "Ready")["status"] == "True"
            ),
            "all is told again",
        )
    w.trains = True
    await w.until(lambda: w.succeeded("digits", 3), "the run ends")


async def trainer_crash(w: World) -> None:
    """The trainer's pod goes right after a commit that nobody has read."""
    w.after_step[2] = lambda: w.kubelet.evict("trainer")
    await w.apply("TrainableModel", "tiny", model_spec())
    await w.apply("TrainingRun", "digits", run_spec("tiny", 3))
    await w.until(lambda: w.succeeded("digits", 3), "the run ends")


async def suspend(w: World) -> None:
    w.trains = False
    await w.apply("TrainableModel", "tiny", model_spec())
    await w.apply("TrainingRun", "digits", run_spec("tiny", 2))
    await w.until(
        lambda: w.condition("TrainingRun", "digits", "Ready")["reason"] == "Training", "it trains"
    )
    await w.apply("TrainingRun", "digits", run_spec("tiny", 2, suspend=True))
    await w.until(lambda: not w.kubelet.pods("trainer") and not w.kubelet.pods("runner"), "freed")
    w.trains = True
    await w.apply("TrainingRun", "digits", run_spec("tiny", 2))
    await w.until(lambda: w.succeeded("digits", 2), "resumed")


async def model_deleted(w: World) -> None:
    async def stand_still() -> None:
        w.trains = False

    w.after_step[1] = stand_still
    await w.apply("TrainableModel", "tiny", model_spec())
    await w.apply("TrainingRun", "digits", run_spec("tiny", 3))
    await w.until(lambda: w.current("tiny") == "tiny-000001", "it trains")
    await w.delete("TrainableModel", "tiny")
    await w.until(lambda: not w.kubelet.pods("rollout"), "its pods go")
    w.trains = True
    await w.apply("TrainableModel", "tiny", model_spec())
    await w.until(lambda: w.succeeded("digits", 3) and w.serves("tiny", "tiny-000003"), "goes on")
    await w.until(lambda: not w.kubelet.pods("trainer"), "the trainer is freed")


async def head_deleted(w: World) -> None:
    await train(w)
    pin = head_spec("tiny", "Pin", "tiny-000001", onPin="Branch")
    await w.apply("CheckpointHead", "tiny", pin)
    w.trains = False
    await w.apply("TrainingRun", "digits", run_spec("tiny", 4))
    await w.until(lambda: w.assigned("tiny") == 2, "the trainer is told")
    await w.delete("CheckpointHead", "tiny")
    await w.until(lambda: bool(w.get("CheckpointHead", "tiny")), "it is made again")
    w.trains = True
    await w.until(lambda: w.succeeded("digits", 4) and w.serves("tiny", "tiny-000004"), "goes on")


async def two_models(w: World) -> None:
    for model, run in (("tiny", "digits"), ("other", "others")):
        await w.apply("TrainableModel", model, model_spec())
        await w.apply("TrainingRun", run, run_spec(model, 2))
    await w.until(lambda: w.succeeded("digits", 2) and w.succeeded("others", 2), "both end")


async def canary(w: World) -> None:
    """Two heads on one model: each serves its own, side by side."""
    await train(w)
    await w.apply("CheckpointHead", "stable", head_spec("tiny", "Pin", "tiny-000001"))
    await w.until(lambda: w.serves("stable", "tiny-000001"), "the second head serves")
    await w.apply("TrainingRun", "digits", run_spec("tiny", 3))
    await w.until(lambda: w.succeeded("digits", 3) and w.serves("tiny", "tiny-000003"), "goes on")
    await w.apply("CheckpointHead", "stable", head_spec("tiny", "Pin", "tiny-000002"))
    await w.until(lambda: w.serves("stable", "tiny-000002"), "it is promoted by hand")


async def importer(w: World) -> None:
    w.kubelet.giving_up["importer"] = UNREADABLE
    await w.apply("TrainableModel", "tiny", model_spec())
    await w.until(
        lambda: w.condition("TrainableModel", "tiny", "Stalled")["reason"] == "BaseUnreadable",
        "it stalls",
    )
    w.kubelet.giving_up.clear()
    await w.delete("Job", importer_name("tiny"))
    await w.until(
        lambda: w.condition("TrainableModel", "tiny", "Ready")["status"] == "True", "mended"
    )


async def gate(w: World) -> None:
    high, low = ({"metric": "reward/mean", "min": bound} for bound in ("0.9", "0.1"))
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track", gate=high))
    await w.apply("TrainableModel", "tiny", model_spec())
    # The second step's samples say how good the first one's checkpoint is.
    await w.apply("TrainingRun", "digits", run_spec("tiny", 2))
    await w.until(lambda: w.succeeded("digits", 2) and w.serves("tiny", ""), "held back")
    await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track", gate=low))
    await w.until(lambda: w.serves("tiny", "tiny-000001"), "let through")


async def fork(w: World) -> None:
    await train(w)
    source = {"checkpointRef": {"name": "tiny-000001"}}
    await w.apply("TrainableModel", "fork", model_spec(source=source))
    await w.apply("TrainingRun", "forked", run_spec("fork", 1))
    await w.until(lambda: w.succeeded("forked", 1) and w.serves("fork", "fork-000002"), "forked")


async def delete(w: World) -> None:
    """Under deletionPolicy Delete the checkpoints and their bytes go with the model."""
    await w.apply("TrainableModel", "tiny", model_spec(deletionPolicy="Delete"))
    await w.apply("TrainingRun", "digits", run_spec("tiny", 2))
    await w.until(lambda: w.succeeded("digits", 2), "the run ends")
    await w.delete("TrainableModel", "tiny")
    await w.until(
        lambda: not w.checkpoints("tiny") and not w.get("Job", "tiny-collect"), "all is gone"
    )


async def retain(w: World) -> None:
    """A rule retires checkpoints while the run goes on."""
    rules = {"keepLast": 1, "keepEverySteps": 4}
    await w.apply("TrainableModel", "tiny", model_spec())
    await w.apply("TrainingRun", "digits", run_spec("tiny", 5, checkpoint=rules))
    kept = ["tiny-000001", "tiny-000004", "tiny-000005"]
    await w.until(lambda: w.succeeded("digits", 5) and w.checkpoints("tiny") == kept, "retired")


def _either_term(outcome: Outcome) -> Outcome:
    """Of two pins in a row the first may leave no trace: a term more or less, and its names."""
    head = outcome["CheckpointHead default/tiny"]["status"]
    kept = {
        "current": {"step": head["current"]["step"], "digest": head["current"]["digest"]},
        "base": head["branchBase"],
        "conditions": head["conditions"],
    }
    names = sorted(name.split("-")[-1] for name in outcome["births"] if "Checkpoint" in name)
    run = outcome["TrainingRun default/digits"]["status"]
    return {"head": kept, "checkpoints": names, "steps": run["step"]}


def _any_first_term(outcome: Outcome) -> Outcome:
    """A head made anew may learn before or after its first move that the trainer is ahead."""
    moves = outcome["CheckpointHead default/tiny"]["status"]["history"]
    moves[-1] = {**moves[-1], "term": None}
    return outcome


def _without_births(outcome: Outcome) -> Outcome:
    """What was made for a model just deleted, by one who did not know yet, is collected."""
    return {name: value for name, value in outcome.items() if name != "births"}


def _what_is_left(outcome: Outcome) -> Outcome:
    """How far others saw what goes, before it went, is a matter of speed."""
    run = outcome["TrainingRun default/digits"]["status"]
    objects = sorted(name for name in outcome if name != "births")
    return {"objects": objects, "removed": outcome["removed"], "step": run["step"]}


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("train", train),
        Scenario("pause", pause),
        Scenario("branch", branch),
        Scenario("continue", continue_),
        Scenario("two-pins", two_pins, _either_term),
        Scenario("pin-in-mid-step", pin_in_mid_step),
        Scenario("pod-restarts", pod_restarts),
        Scenario("trainer-crash", trainer_crash),
        Scenario("suspend", suspend),
        Scenario("model-deleted", model_deleted, _without_births),
        Scenario("head-deleted", head_deleted, _any_first_term),
        Scenario("two-models", two_models),
        Scenario("canary", canary),
        Scenario("importer", importer),
        Scenario("gate", gate),
        Scenario("fork", fork),
        Scenario("retain", retain, deletes=True),
        Scenario("delete", delete, _what_is_left, deletes=True),
    )
}
