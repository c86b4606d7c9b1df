"""The whole operator on an in-memory cluster: from a manifest to a tree, a rollback, a fork."""

from __future__ import annotations

from tests.simulation.kubelet import RESOLVED
from tests.simulation.scripted import digest
from tests.simulation.virtual_time import run
from tests.simulation.world import NAMESPACE, World, head_spec, model_spec, run_spec, world


async def trained(w: World, steps: int = 3) -> None:
    await w.apply("TrainableModel", "tiny", model_spec())
    await w.apply("TrainingRun", "digits", run_spec("tiny", steps))
    await w.until(lambda: succeeded(w, "digits", steps), "the run succeeds")


def succeeded(w: World, name: str, steps: int) -> bool:
    done = w.condition("TrainingRun", name, "Succeeded")["status"] == "True"
    return done and w.status("TrainingRun", name)["step"] == steps


def test_a_run_trains_a_model_and_the_head_follows() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w)
            assert w.checkpoints("tiny") == ["tiny-000001", "tiny-000002", "tiny-000003"]
            head = w.status("CheckpointHead", "tiny")
            assert head["current"]["name"] == "tiny-000003"
            assert head["term"] == 1
            assert w.condition("CheckpointHead", "tiny", "Ready")["reason"] == "Tracking"
            assert w.condition("TrainingRun", "digits", "Succeeded")["reason"] == "StepsCompleted"
            assert w.condition("TrainableModel", "tiny", "Ready")["status"] == "True"
            assert w.get("StatefulSet", "tiny-trainer")["spec"]["replicas"] == 0
            assert w.status("Checkpoint", "tiny-000003")["headMark"] == "> tiny"
            tree = w.status("TrainableModel", "tiny")["tree"]
            assert tree["branches"][0]["tip"] == "tiny-000003"

    run(scenario())


def test_a_model_of_an_adapter_from_outside_serves_it_and_trains_on_from_it() -> None:
    async def scenario() -> None:
        async with world() as w:
            imported = {"digest": digest("outside"), "sizeBytes": 7}
            w.kubelet.resolved = {**RESOLVED, "adapter": imported}
            source = {
                "base": {"image": "registry.example/tiny:1"},
                "adapter": {"image": "registry.example/lora:1"},
            }
            await w.apply("TrainableModel", "tiny", model_spec(source=source))
            await w.until(lambda: w.current("tiny") == "tiny-000000", "the adapter is served")
            made = w.get("Checkpoint", "tiny-000000")["spec"]
            assert (made["step"], made["digest"]) == (0, imported["digest"])
            assert w.status("TrainableModel", "tiny")["resolved"]["adapter"] == imported
            await w.apply("TrainingRun", "digits", run_spec("tiny", 2))
            await w.until(lambda: succeeded(w, "digits", 2), "the run succeeds")
            assert w.checkpoints("tiny") == ["tiny-000000", "tiny-000001", "tiny-000002"]
            assert w.get("Checkpoint", "tiny-000001")["spec"]["parentRef"]["name"] == "tiny-000000"
            tree = w.status("TrainableModel", "tiny")["tree"]
            assert (tree["branches"][0]["firstStep"], tree["branches"][0]["lastStep"]) == (0, 2)
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", "tiny-000000"))
            await w.until(lambda: w.current("tiny") == "tiny-000000", "pinned to the adapter")

    run(scenario())


def test_a_pin_rolls_back_and_a_return_to_track_restores_everything() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w)
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", "tiny-000001"))
            await w.until(lambda: w.current("tiny") == "tiny-000001", "the pin is served")
            pinned = w.status("CheckpointHead", "tiny")
            assert pinned["term"] == 2
            assert pinned["previous"]["name"] == "tiny-000003"
            assert pinned["history"][0]["reason"] == "Pinned"
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
            await w.until(lambda: w.current("tiny") == "tiny-000003", "the newest is back")
            back = w.status("CheckpointHead", "tiny")
            assert back["term"] == 3
            assert back["history"][0]["reason"] == "Unpinned"

    run(scenario())


def test_a_branch_grows_from_the_pinned_checkpoint_and_track_follows_it() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w)
            pin = head_spec("tiny", "Pin", "tiny-000001", onPin="Branch")
            await w.apply("CheckpointHead", "tiny", pin)
            await w.until(lambda: w.current("tiny") == "tiny-000001", "the pin is served")
            await w.apply("TrainingRun", "digits", run_spec("tiny", 5))
            await w.until(lambda: succeeded(w, "digits", 5), "two more steps")
            assert w.current("tiny") == "tiny-000001"
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
            await w.until(lambda: w.current("tiny") == "tiny-b2-000003", "Track follows the branch")
            assert w.status("CheckpointHead", "tiny")["term"] == 2
            branches = {
                b["name"]: b for b in w.status("TrainableModel", "tiny")["tree"]["branches"]
            }
            assert branches["main"]["superseded"] is True
            assert branches["b2"]["base"] == "tiny-000001"
            assert w.condition("Checkpoint", "tiny-000003", "Superseded")["status"] == "True"
            assert w.condition("Checkpoint", "tiny-000001", "Superseded")["status"] == "False"

    run(scenario())


def test_pause_frees_trainer_and_runner_and_resuming_goes_on_where_it_stopped() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w)
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", "tiny-000002"))
            await w.apply("TrainingRun", "digits", run_spec("tiny", 5))
            await w.until(
                lambda: w.condition("TrainingRun", "digits", "Ready")["reason"] == "HeadPinned",
                "the run is paused",
            )
            await w.rest()
            assert not w.kubelet.pods("trainer")
            assert w.checkpoints("tiny")[-1] == "tiny-000003"
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
            await w.until(lambda: succeeded(w, "digits", 5), "training went on")
            assert w.checkpoints("tiny")[-2:] == ["tiny-000004", "tiny-000005"]
            parent = w.get("Checkpoint", "tiny-000004")["spec"]["parentRef"]["name"]
            assert parent == "tiny-000003"

    run(scenario())


def test_continue_holds_what_is_served_and_lets_training_go_on() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w)
            pin = head_spec("tiny", "Pin", "tiny-000001", onPin="Continue")
            await w.apply("CheckpointHead", "tiny", pin)
            await w.apply("TrainingRun", "digits", run_spec("tiny", 5))
            await w.until(lambda: succeeded(w, "digits", 5), "training goes on")
            head = w.status("CheckpointHead", "tiny")
            assert (head["current"]["name"], head["term"]) == ("tiny-000001", 1)
            assert head["latest"]["name"] == "tiny-000005"

    run(scenario())


def test_a_pin_that_cannot_be_met_leaves_everything_as_it_is() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w)
            await w.apply("TrainableModel", "other", model_spec())
            await w.apply("TrainingRun", "others", run_spec("other", 1))
            await w.until(lambda: succeeded(w, "others", 1), "the other model trains")
            before = w.status("CheckpointHead", "tiny")["current"]
            for name, reason in (
                ("tiny-000099", "CheckpointNotFound"),
                ("other-000001", "WrongModel"),
            ):
                await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", name))

                def stalled(reason: str = reason) -> bool:
                    return w.condition("CheckpointHead", "tiny", "Stalled")["reason"] == reason

                await w.until(stalled, reason)
                assert w.status("CheckpointHead", "tiny")["current"] == before
                assert w.status("CheckpointHead", "tiny")["term"] == 1
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
            await w.until(
                lambda: w.condition("CheckpointHead", "tiny", "Ready")["status"] == "True", "Ready"
            )

    run(scenario())


def test_a_gate_holds_the_head_back() -> None:
    async def scenario() -> None:
        async with world() as w:
            gate = {"metric": "reward/mean", "min": "0.9"}
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track", gate=gate))
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.apply("TrainingRun", "digits", run_spec("tiny", 2))
            await w.until(lambda: succeeded(w, "digits", 2), "the steps are taken")
            head = w.status("CheckpointHead", "tiny")
            assert (head["current"]["name"], head["latest"]["name"]) == ("", "tiny-000002")
            ready = w.condition("CheckpointHead", "tiny", "Ready")
            assert "tiny-000002 has no reward/mean yet" in ready["message"]
            assert "The newest that has it is tiny-000001 with 0.5" in ready["message"]

    run(scenario())


def test_a_gate_lets_through_what_reaches_it_itself_and_not_what_its_parent_reached() -> None:
    async def scenario() -> None:
        async with world() as w:
            gate = {"metric": "reward/mean", "min": "0.7"}
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track", gate=gate))
            w.rewards = [0.2, 0.9, 0.3]
            await trained(w)
            # The samples for the second step were the first checkpoint's, those for the third the
            # second's: by the numbers of their parents 2 passed and 1 did not.
            await w.until(lambda: w.current("tiny") == "tiny-000001", "the one that was good")
            own = {
                name: {m["name"]: m["value"] for m in w.status("Checkpoint", name)["metrics"]}
                for name in ("tiny-000001", "tiny-000002", "tiny-000003")
            }
            rewards = [(m.get("rollout/reward/mean"), m.get("reward/mean")) for m in own.values()]
            assert rewards == [("0.2", "0.9"), ("0.9", "0.3"), ("0.3", None)]

    run(scenario())


def test_a_fork_starts_at_its_origin_and_grows_its_own_tree() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w)
            source = {"checkpointRef": {"name": "tiny-000002"}}
            await w.apply("TrainableModel", "fork", model_spec(source=source))
            await w.until(
                lambda: w.condition("TrainableModel", "fork", "Ready")["status"] == "True", "Ready"
            )
            assert w.current("fork") == "tiny-000002"
            assert w.status("Checkpoint", "tiny-000002")["heads"] == ["fork"]
            await w.apply("TrainingRun", "forked", run_spec("fork", 2))
            await w.until(lambda: succeeded(w, "forked", 2), "the fork trains")
            assert w.checkpoints("fork") == ["fork-000003", "fork-000004"]
            first = w.get("Checkpoint", "fork-000003")["spec"]
            assert first["parentRef"]["name"] == "tiny-000002"
            assert w.current("tiny") == "tiny-000003"

    run(scenario())


def test_a_fork_that_does_not_fit_its_origin_is_stalled_with_the_fields() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w)
            adapter = {"rank": 8, "alpha": 32, "targetModules": ["all-linear"]}
            source = {"checkpointRef": {"name": "tiny-000002"}}
            await w.apply("TrainableModel", "fork", model_spec(source=source, adapter=adapter))
            await w.until(
                lambda: w.condition("TrainableModel", "fork", "Stalled")["status"] == "True",
                "Stalled",
            )
            said = w.condition("TrainableModel", "fork", "Stalled")
            assert said["reason"] == "SourceMismatch"
            assert "spec.adapter.rank is 8, must be 16" in said["message"]
            assert not w.get("Deployment", "fork-rollout")

    run(scenario())


def test_a_second_run_waits_until_the_first_is_done_or_suspended() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.trains = False
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.apply("TrainingRun", "first", run_spec("tiny", 2))
            await w.apply("TrainingRun", "second", run_spec("tiny", 2))
            await w.until(
                lambda: w.condition("TrainingRun", "second", "Ready")["reason"] == "ModelBusy",
                "the second waits",
            )
            assert w.condition("TrainingRun", "second", "Reconciling")["status"] == "True"
            await w.apply("TrainingRun", "first", run_spec("tiny", 2, suspend=True))
            await w.until(
                lambda: w.condition("TrainingRun", "first", "Suspended")["status"] == "True",
                "the first is suspended",
            )
            w.trains = True
            await w.until(lambda: succeeded(w, "second", 2), "the second has its turn")
            assert w.status("TrainingRun", "first")["step"] == 0

    run(scenario())


def test_restarted_pods_are_told_again_what_to_serve_and_train() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.trains = False
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.apply("TrainingRun", "digits", run_spec("tiny", 4))
            training = "Training"
            await w.until(
                lambda: w.condition("TrainingRun", "digits", "Ready")["reason"] == training,
                "it trains",
            )
            for role in ("trainer", "rollout", "runner"):
                await w.kubelet.restart(role)
                w.trains = True
                await w.rest(5)
            await w.until(lambda: succeeded(w, "digits", 4), "the run succeeds")
            assert w.checkpoints("tiny") == [f"tiny-00000{n}" for n in (1, 2, 3, 4)]

    run(scenario())


def test_an_term_of_a_deleted_head_is_overtaken() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w)
            pin = head_spec("tiny", "Pin", "tiny-000001", onPin="Branch")
            await w.apply("CheckpointHead", "tiny", pin)
            w.trains = False
            await w.apply("TrainingRun", "digits", run_spec("tiny", 4))
            await w.until(
                lambda: w.trainer.volume("tiny").assignment.term == 2, "the trainer is told"
            )
            await w.delete("CheckpointHead", "tiny")
            w.trains = True
            await w.until(lambda: succeeded(w, "digits", 4), "training goes on")
            assert w.status("CheckpointHead", "tiny")["term"] == 3
            assert w.current("tiny") == "tiny-000004"

    run(scenario())


def test_a_commit_of_a_trainer_left_behind_never_moves_the_head() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w, 2)
            volume = w.trainer.volume("tiny")
            zombie = volume.commits[-1].model_copy(
                update={"index": 3, "step": 3, "run_step": 3, "name": "tiny-000003"}
            )
            zombie = zombie.model_copy(
                update={
                    "parent": volume.commits[-1].digest,
                    "parent_name": "tiny-000002",
                    "digest": "sha256:" + "f" * 64,
                }
            )
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Pin", "tiny-000001"))
            await w.until(lambda: w.current("tiny") == "tiny-000001", "pinned")
            await w.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
            await w.until(lambda: w.current("tiny") == "tiny-000002", "back")
            volume.commits.append(zombie)
            volume.run_steps[zombie.run] = 3
            await w.apply("TrainingRun", "digits", run_spec("tiny", 4))
            await w.until(lambda: succeeded(w, "digits", 4), "one more step")
            assert w.get("Checkpoint", "tiny-000003")["spec"]["digest"] != zombie.digest
            events = [b for k, b in w.cluster.objects.items() if k.kind == "Event"]
            fenced = [e for e in events if e["reason"] == "CommitFenced"]
            assert len(fenced) == 1
            assert "StaleTerm" in fenced[0]["message"]

    run(scenario())


def test_everything_goes_with_its_owner_but_the_checkpoints() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w, 1)
            for kind, name in (("TrainableModel", "tiny"), ("TrainingRun", "digits")):
                await w.delete(kind, name)
            await w.rest()
            left = {k.kind for k in w.cluster.objects if k.namespace == NAMESPACE} - {"Event"}
            assert left == {"Checkpoint", "ConfigMap"}

    run(scenario())


def test_a_model_of_the_same_name_continues_its_tree() -> None:
    async def scenario() -> None:
        async with world() as w:
            await trained(w, 2)
            for kind, name in (("TrainableModel", "tiny"), ("TrainingRun", "digits")):
                await w.delete(kind, name)
            await w.rest()
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.apply("TrainingRun", "digits", run_spec("tiny", 1))
            await w.until(lambda: succeeded(w, "digits", 1), "a run of its own")
            assert w.current("tiny") == "tiny-000003"

    run(scenario())


def test_a_model_tells_autoscalers_which_and_how_many_rollouts_it_has() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.apply("TrainableModel", "tiny", model_spec())
            await w.until(lambda: w.current("tiny") == "", "the base is served")
            told = w.status("TrainableModel", "tiny")["rollout"]
            labels = w.get("Deployment", "tiny-rollout")["spec"]["selector"]["matchLabels"]
            assert told["replicas"] == 1
            assert dict(pair.split("=") for pair in told["selector"].split(",")) == labels

    run(scenario())
