"""Stories of heads: each acts on a world and ends the same whatever accidents happen to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.simulation.world import World, head_spec, model_spec, run_spec

from espalier.core.names import adapter_name

IMAGE = {"reason": "ImagePullBackOff", "message": "no such image"}
HEAD = "CheckpointHead"


def ready(w: World, head: str, name: str) -> bool:
    """Whether a head serves a checkpoint and has come to rest."""
    return w.current(head) == name and w.condition(HEAD, head, "Ready")["status"] == "True"


def succeeded(w: World, steps: int) -> bool:
    said = w.condition("TrainingRun", "digits", "Succeeded")["status"]
    return said == "True" and w.status("TrainingRun", "digits")["step"] == steps


async def trained(w: World, steps: int = 3, **rollout: object) -> None:
    await w.apply("TrainableModel", "tiny", model_spec(rollout=rollout))
    await w.apply("TrainingRun", "digits", run_spec("tiny", steps))
    await w.until(lambda: succeeded(w, steps) and ready(w, "tiny", f"tiny-{steps:06d}"), "trained")


async def stable_and_canary(w: World) -> None:
    """The model's own head holds an old checkpoint while a canary follows training."""
    await trained(w)
    await w.apply(HEAD, "canary", head_spec("tiny", "Track"))
    pin = head_spec("tiny", "Pin", "tiny-000001", onPin="Continue")
    await w.apply(HEAD, "tiny", pin)
    await w.apply("TrainingRun", "digits", run_spec("tiny", 5))
    await w.until(lambda: succeeded(w, 5), "two more steps")
    await w.until(lambda: ready(w, "canary", "tiny-000005"), "the canary follows")
    assert ready(w, "tiny", "tiny-000001")
    told = [sorted(adapters) for adapters in w.rollouts.serving.values()]
    wanted = [_adapter(w, "tiny-000001"), _adapter(w, "tiny-000005")]
    assert told == [sorted(wanted)]
    # What the canary asks for has no effect on training.
    await w.apply(HEAD, "canary", head_spec("tiny", "Pin", "tiny-000002", onPin="Branch"))
    await w.until(lambda: ready(w, "canary", "tiny-000002"), "the canary is pinned")
    assert w.status(HEAD, "tiny")["term"] == w.status(HEAD, "canary")["term"] == 1


async def damaged_canary(w: World) -> None:
    """Bytes that only the canary wants are damaged; a restart must not hurt the stable head."""
    await trained(w)
    w.rollouts.broken.add(_adapter(w, "tiny-000001"))
    await w.apply(HEAD, "canary", head_spec("tiny", "Pin", "tiny-000001"))
    await w.until(
        lambda: w.condition(HEAD, "canary", "Stalled")["reason"] == "FileAltered", "refused"
    )
    await w.kubelet.restart("rollout")
    await w.until(lambda: ready(w, "tiny", "tiny-000003"), "the stable head is served again")
    assert w.condition("Checkpoint", "tiny-000001", "Ready")["reason"] == "FileAltered"


async def one_slot(w: World) -> None:
    """A rollout with room for one adapter serves the leading head; the other says why it is not."""
    await trained(w, maxAdapters=1)
    await w.apply(HEAD, "canary", head_spec("tiny", "Pin", "tiny-000001"))
    await w.until(
        lambda: w.condition(HEAD, "canary", "Stalled")["reason"] == "TooManyHeads", "crowded out"
    )
    assert ready(w, "tiny", "tiny-000003")
    await w.apply(HEAD, "canary", head_spec("tiny", "Pin", "tiny-000003"))
    await w.until(lambda: ready(w, "canary", "tiny-000003"), "the same adapter needs no room")


async def full_weights(w: World) -> None:
    """Rollouts hold one checkpoint: the leading head's, whatever another head asks for."""
    w.rollouts.full.add("tiny")
    w.trainer.rank = 0
    full = {"adapter": {"type": "Full"}, "trainer": {"dtype": "float32"}}
    await w.apply("TrainableModel", "tiny", model_spec(**full))
    await w.apply("TrainingRun", "digits", run_spec("tiny", 2))
    await w.until(lambda: succeeded(w, 2) and ready(w, "tiny", "tiny-000002"), "trained")
    await w.apply(HEAD, "canary", head_spec("tiny", "Pin", "tiny-000001"))
    await w.until(
        lambda: w.condition(HEAD, "canary", "Stalled")["reason"] == "TooManyHeads", "crowded out"
    )
    await w.apply(HEAD, "tiny", head_spec("tiny", "Pin", "tiny-000001"))
    await w.until(
        lambda: ready(w, "tiny", "tiny-000001") and ready(w, "canary", "tiny-000001"), "both"
    )
    await w.kubelet.restart("rollout")
    wanted = [_adapter(w, "tiny-000001")]
    await w.until(lambda: list(w.rollouts.serving.values()) == [wanted], "loaded again")
    await w.delete(HEAD, "canary")
    await w.apply("TrainingRun", "digits", run_spec("tiny", 3))
    await w.apply(HEAD, "tiny", head_spec("tiny", "Track"))
    await w.until(lambda: succeeded(w, 3) and ready(w, "tiny", "tiny-000003"), "goes on")


async def evicted(w: World) -> None:
    """The engine drops what it serves; no event tells."""
    await trained(w)
    for ip in w.rollouts.serving:
        w.rollouts.serving[ip] = []
    wanted = [_adapter(w, "tiny-000003")]
    await w.until(lambda: list(w.rollouts.serving.values()) == [wanted], "loaded again")


async def pinned_without_rollouts(w: World) -> None:
    """A pin while all rollouts are down holds training at once and is served when they are back."""
    await trained(w)
    w.kubelet.waiting["rollout"] = IMAGE
    await w.kubelet.restart("rollout")
    await w.apply(HEAD, "tiny", head_spec("tiny", "Pin", "tiny-000001"))
    await w.until(lambda: w.status(HEAD, "tiny")["term"] == 2, "agreed to")
    assert w.current("tiny") == "tiny-000003"
    w.kubelet.waiting.clear()
    await w.kubelet.restart("rollout")
    await w.until(lambda: ready(w, "tiny", "tiny-000001"), "served")


async def pinned_without_trainer(w: World) -> None:
    """A branch is asked for while the trainer is down; it grows when the trainer is back."""
    await trained(w)
    w.kubelet.waiting["trainer"] = IMAGE
    await w.apply("TrainingRun", "digits", run_spec("tiny", 5))
    pin = head_spec("tiny", "Pin", "tiny-000001", onPin="Branch")
    await w.apply(HEAD, "tiny", pin)
    await w.until(lambda: ready(w, "tiny", "tiny-000001"), "served")
    w.kubelet.waiting.clear()
    await w.kubelet.restart("trainer")
    await w.until(lambda: succeeded(w, 5), "the branch grows")
    assert w.checkpoints("tiny")[-2:] == ["tiny-b2-000002", "tiny-b2-000003"]


async def pinned_in_mid_step(w: World) -> None:
    """The step under way when a pin pauses training still counts, and is where it goes on."""
    await trained(w, 2)
    w.trains = False
    await w.apply("TrainingRun", "digits", run_spec("tiny", 4))
    await w.until(
        lambda: w.condition("TrainingRun", "digits", "Ready")["reason"] == "Training", "it trains"
    )
    await w.apply(HEAD, "tiny", head_spec("tiny", "Pin", "tiny-000001"))
    await w.trainer.step("tiny")
    await w.until(lambda: "tiny-000003" in w.checkpoints("tiny"), "the step counts")
    await w.until(lambda: ready(w, "tiny", "tiny-000001"), "served")
    await w.apply(HEAD, "tiny", head_spec("tiny", "Track"))
    w.trains = True
    await w.until(lambda: succeeded(w, 4) and ready(w, "tiny", "tiny-000004"), "it goes on")
    assert w.get("Checkpoint", "tiny-000004")["spec"]["parentRef"]["name"] == "tiny-000003"


async def two_pins(w: World) -> None:
    """Of two pins in quick succession the second is served."""
    await trained(w)
    await w.apply(HEAD, "tiny", head_spec("tiny", "Pin", "tiny-000001"))
    await w.apply(HEAD, "tiny", head_spec("tiny", "Pin", "tiny-000002"))
    await w.until(lambda: ready(w, "tiny", "tiny-000002"), "the second is served")


async def objects_that_lie(w: World) -> None:
    """Checkpoints written by hand join no tree, and a commit waits while one has its name."""
    await trained(w)
    true = w.get("Checkpoint", "tiny-000003")["spec"]
    lies = {
        "tiny-000004": {"step": 4, "uri": "volume://checkpoints/../../etc"},
        "tiny-000009": {"step": 9, "parentRef": {"name": "tiny-000003"}},
        "x" * 63: {"step": 4, "parentRef": {"name": "tiny-000003"}},
    }
    for name, lie in lies.items():
        await w.apply("Checkpoint", name, {**true, **lie})
        await w.until(
            lambda n=name: w.condition("Checkpoint", n, "Stalled")["status"] == "True", "Stalled"
        )
    w.trains = False
    await w.apply("TrainableModel", "other", model_spec())
    await w.until(lambda: ready(w, "other", ""), "another model is served")
    w.trains = True
    assert ready(w, "tiny", "tiny-000003")
    await w.apply("TrainingRun", "digits", run_spec("tiny", 4))
    await w.until(lambda: _held(w), "the commit waits")
    await w.delete("Checkpoint", "tiny-000004")
    await w.until(lambda: succeeded(w, 4) and ready(w, "tiny", "tiny-000004"), "it joins the tree")
    for name in ("tiny-000009", "x" * 63):
        await w.delete("Checkpoint", name)


async def bytes_that_nobody_has(w: World) -> None:
    """A sound object whose digest is of no bytes on the volume: the head gives it up."""
    await trained(w)
    true = w.get("Checkpoint", "tiny-000003")["spec"]
    digest = "sha256:" + "f" * 64
    forged = {
        **true,
        "step": 4,
        "digest": digest,
        "uri": f"volume://checkpoints/sha256-{'f' * 64}",
        "parentRef": {"name": "tiny-000003"},
    }
    w.rollouts.broken.add(adapter_name("tiny", digest))
    await w.apply("Checkpoint", "tiny-000004", forged)
    await w.until(
        lambda: w.condition("Checkpoint", "tiny-000004", "Stalled")["status"] == "True", "refused"
    )
    await w.until(lambda: ready(w, "tiny", "tiny-000003"), "given up")
    await w.delete("Checkpoint", "tiny-000004")


async def head_over_anothers_name(w: World) -> None:
    """A head that has another model's name says so, as does the model; a rename mends both."""
    await w.apply("TrainableModel", "other", model_spec())
    await w.apply(HEAD, "tiny", head_spec("other", "Track"))
    await w.apply("TrainableModel", "tiny", model_spec())
    await w.until(
        lambda: (
            w.condition(HEAD, "tiny", "Stalled")["reason"] == "NameTaken"
            and w.condition("TrainableModel", "tiny", "Stalled")["reason"] == "HeadNameTaken"
        ),
        "both say so",
    )
    await w.until(lambda: ready(w, "other", ""), "the other model has a head of its own")
    await w.delete(HEAD, "tiny")
    await w.until(lambda: ready(w, "tiny", ""), "the model has a head of its own")


def _adapter(w: World, checkpoint: str) -> str:
    return adapter_name("tiny", w.get("Checkpoint", checkpoint)["spec"]["digest"])


def _held(w: World) -> bool:
    events = [body for key, body in w.cluster.objects.items() if key.kind == "Event"]
    return any(event["reason"] == "CommitHeld" for event in events)


STORIES: dict[str, Callable[[World], Awaitable[None]]] = {
    story.__name__: story
    for story in (
        stable_and_canary,
        damaged_canary,
        one_slot,
        full_weights,
        evicted,
        pinned_without_rollouts,
        pinned_without_trainer,
        pinned_in_mid_step,
        two_pins,
        objects_that_lie,
        bytes_that_nobody_has,
        head_over_anothers_name,
    )
}
