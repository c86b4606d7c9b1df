"""A real Argo CD owns the sync of models, heads and runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from dev.apiserver import BINARIES
from dev.gitops import ArgoCd
from tests.gitops.argocd import Application, operation
from tests.gitops.artifacts import save_lines, save_log
from tests.gitops.conftest import OpenTeams
from tests.gitops.rollback import assert_rolled_back, essence
from tests.gitops.team import MODEL, OBJECTS, RUN, Team, declared, edit_head, has, writers
from typer.testing import CliRunner

from espalier.cli.main import app as espalier
from espalier.kube.objects import Body

pytestmark = pytest.mark.timeout(900)

ADVANCES = [20, pytest.param(100, marks=pytest.mark.exhaustive)]


class Owned(Application):
    """The Application of a team."""

    def __init__(self, argocd: ArgoCd, team: Team, record: Path, **annotations: str) -> None:
        super().__init__(argocd, team.repository, team.namespace, record, **annotations)
        self.team = team


Own = Callable[..., Awaitable[Owned]]


@pytest.fixture
async def own(argocd: ArgoCd, scenario: Path, tmp_path: Path) -> AsyncIterator[Own]:
    """Lets Argo CD own a team's repository; what it did becomes an artifact."""
    async with AsyncExitStack() as stack:

        async def make(team: Team, *options: str, **annotations: str) -> Owned:
            record = tmp_path / f"{team.namespace}.json"
            application = Owned(argocd, team, record, **annotations)
            stack.push_async_callback(leave, application)
            await application.create(*options)
            await application.synced(team.repository.git("rev-parse", "HEAD"))
            return application

        async def leave(application: Owned) -> None:
            name = application.name
            save_lines([await application.get()], scenario / f"{name}-application.json")
            await application.stop()
            save_lines(application.states(), scenario / f"{name}-states.jsonl")
            for process in ("application-controller", "repo-server"):
                save_log(argocd.log(process), scenario / f"{name}-{process}.log", name)

        yield make


async def test_the_first_sync_goes_wave_by_wave(open_teams: OpenTeams, own: Own) -> None:
    (team,) = await open_teams(1)
    application = await own(team)
    created = {k: (await team.get(k, n))["metadata"]["creationTimestamp"] for k, n in OBJECTS}
    ready = next(c for c in (await team.head())["status"]["conditions"] if c["type"] == "Ready")
    assert max(created.values()) == created["TrainingRun"] >= ready["lastTransitionTime"]
    waited = " ".join(state["message"] for state in application.states())
    assert "waiting for healthy state of espalier.dev/" in waited
    # The head came from Git before the operator could miss it, and nobody owns it.
    assert "ownerReferences" not in (await team.head())["metadata"]
    resources = (await application.get())["status"]["resources"]
    assert {r["kind"] for r in resources} == {
        "CheckpointHead",
        "PersistentVolumeClaim",
        "TrainableModel",
        "TrainingRun",
    }


@pytest.mark.parametrize("advances", ADVANCES)
async def test_advances_are_no_drift_and_no_sync(
    open_teams: OpenTeams, own: Own, scenario: Path, advances: int
) -> None:
    client_side, server_side = await open_teams(2)
    applications = [
        await own(client_side),
        await own(server_side, "ServerSideApply=true", compare_options="ServerSideDiff=true"),
    ]
    before = [await declared(application.team) for application in applications]
    names = await asyncio.gather(*(a.team.advance(advances) for a in applications))
    assert names == [f"arith-{advances:06d}"] * 2
    for application, declared_before in zip(applications, before, strict=True):
        after = await application.compared()
        assert after["status"]["sync"]["status"] == "Synced"
        assert len(after["status"]["history"]) == 1
        seen = since_first_sync(application)
        assert {state["sync"] for state in seen} == {"Synced"}
        assert {state["operation"] for state in seen} == {seen[0]["operation"]}
        assert await declared(application.team) == declared_before
        assert await writers(application.team) == {"argocd-controller"}


async def test_a_hand_edit_shows_as_drift_and_is_healed(open_teams: OpenTeams, own: Own) -> None:
    client_side, server_side = await open_teams(2)
    applications = [
        await own(client_side),
        await own(server_side, "ServerSideApply=true", compare_options="ServerSideDiff=true"),
    ]
    await asyncio.gather(*(heal(application) for application in applications))


async def heal(application: Owned) -> None:
    team = application.team
    await team.advance(3)
    # A pin by hand: Git says Track and nothing of checkpointRef.
    await edit_head(team, mode="Pin", checkpointRef={"name": "arith-000001"})
    await application.until(lambda _: drifted(application, 1), "the hand edit to show")
    await team.serves("arith-000003", "Tracking")
    pinned = team.repository.pin("arith-000002")
    await application.synced(pinned, "Suspended")
    await team.serves("arith-000002", "Pinned")
    # Another reference than Git's, then another mode.
    await edit_head(team, checkpointRef={"name": "arith-000001"})
    await application.until(lambda _: drifted(application, 2), "the other reference to show")
    await team.serves("arith-000002", "Pinned")
    await edit_head(team, mode="Track")
    await application.until(lambda _: drifted(application, 3), "the other mode to show")
    await team.serves("arith-000002", "Pinned")
    # Not wedged: Git still moves the head, and training goes on.
    await application.synced(team.repository.revert())
    await team.serves("arith-000003", "Tracking")
    await team.advance(1)


async def test_every_way_back_ends_in_the_same_head(open_teams: OpenTeams, own: Own) -> None:
    reverted, committed, operated, applied = await open_teams(4)
    ends = await asyncio.gather(
        roll_back(reverted, by_revert, own),
        roll_back(committed, by_commit, own),
        roll_back(operated, by_operation, own),
        roll_back_by_hand(applied),
    )
    assert_rolled_back(ends)


async def test_pruning_waits_for_a_person_and_keeps_the_checkpoints(
    open_teams: OpenTeams, own: Own
) -> None:
    (team,) = await open_teams(1)
    application = await own(team)
    await team.advance(2)
    team.repository.remove("run.yaml", "head.yaml", "model.yaml")
    await application.refresh()
    await application.until(
        lambda app: "pruning confirmation" in operation(app).get("message", ""),
        "the question whether to prune",
    )
    assert "deletionTimestamp" not in (await team.get("TrainableModel", MODEL))["metadata"]
    await team.serves("arith-000002")
    await application.approve_pruning()
    await team.gone("TrainableModel", MODEL)
    await team.gone("CheckpointHead", MODEL)
    await team.gone("TrainingRun", RUN)
    assert await team.get("Checkpoint", "arith-000002")
    assert await team.get("PersistentVolumeClaim", "espalier-weights")


async def test_suspend_and_resume_are_safe_under_self_heal(open_teams: OpenTeams, own: Own) -> None:
    (team,) = await open_teams(1)
    application = await own(team)
    await team.advance(1)
    synced = operation(await application.get())
    for action, reason in (("suspend", "Suspended"), ("resume", "Training")):
        await team.act(action)
        await team.until("TrainingRun", RUN, has("Ready", reason), f"the run to be {reason}")
        after = await application.compared()
        assert after["status"]["sync"]["status"] == "Synced"
        assert operation(after) == synced
    assert "suspend" not in (await team.get("TrainingRun", RUN))["spec"]
    await team.advance(1)


async def test_a_pin_that_cannot_be_met_is_degraded_until_reverted(
    open_teams: OpenTeams, own: Own
) -> None:
    (team,) = await open_teams(1)
    application = await own(team)
    await team.advance(2)
    team.repository.pin("arith-000999")
    await application.refresh()
    degraded = await application.until(
        lambda app: app["status"]["health"]["status"] == "Degraded", "Degraded"
    )
    (head,) = [r for r in degraded["status"]["resources"] if r["kind"] == "CheckpointHead"]
    assert head["status"] == "Synced"
    assert team.served()[0].startswith("arith@")
    assert (await team.head())["status"]["current"]["name"] == "arith-000002"
    await application.synced(team.repository.revert())
    await team.serves("arith-000002", "Tracking")
    await team.advance(1)


async def test_a_promotion_is_a_commit_that_moves_the_head(
    open_teams: OpenTeams, own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    (team,) = await open_teams(1)
    application = await own(team)
    await team.advance(1)
    gate = {"metric": "reward/mean", "min": "0.8"}
    held = team.repository.pin("arith-000001", onPin="Continue", gate=gate)
    await application.synced(held)
    # What each step sampled is its parent's: 0.2 of the first, 0.9 of the second, 0.1 of the third.
    for reward in (0.2, 0.9, 0.1):
        newest = (await team.servers.trainer.step(MODEL, reward)).name
    await team.until("Checkpoint", newest, has("Ready", "Committed"), f"Checkpoint {newest}")
    await team.serves("arith-000001", "Pinned")
    for name, value in team.repository.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{BINARIES}:{os.environ['PATH']}")
    command = ["-n", team.namespace, "promote", "--git", str(team.repository.tree), "--push"]
    done = await asyncio.to_thread(CliRunner().invoke, espalier, command)
    assert done.exit_code == 0, done.output
    await application.synced(team.repository.git("rev-parse", "HEAD"))
    # The newest that passed the gate, not the newest.
    await team.serves("arith-000002", "Pinned")


async def by_revert(application: Owned, first: str) -> None:
    await application.synced(application.team.repository.revert(), "Suspended")


async def by_commit(application: Owned, first: str) -> None:
    await application.synced(application.team.repository.pin("arith-000001"), "Suspended")


async def by_operation(application: Owned, first: str) -> None:
    await application.sync_to(first)


async def roll_back(team: Team, way: Callable[[Owned, str], Awaitable[None]], own: Own) -> Body:
    """Pins to step 1, to step 2 and back to step 1; the head's status in the end."""
    application = await own(team)
    await team.advance(3)
    first = team.repository.pin("arith-000001")
    await application.synced(first, "Suspended")
    await team.serves("arith-000001")
    await application.synced(team.repository.pin("arith-000002"), "Suspended")
    await team.serves("arith-000002")
    await way(application, first)
    return essence(await team.serves("arith-000001"))


async def roll_back_by_hand(team: Team) -> Body:
    """The same with kubectl apply."""
    await team.kubectl("apply", "-f", str(team.repository.tree / "model"))
    await team.advance(3)
    for checkpoint in ("arith-000001", "arith-000002"):
        team.repository.pin(checkpoint)
        await team.kubectl("apply", "-f", str(team.repository.tree / "model"))
        await team.serves(checkpoint)
    team.repository.revert()
    await team.kubectl("apply", "-f", str(team.repository.tree / "model"))
    return essence(await team.serves("arith-000001"))


def drifted(application: Owned, times: int) -> bool:
    """Whether it was OutOfSync, and Synced again, so many times since its first sync."""
    syncs = [state["sync"] for state in since_first_sync(application)]
    runs = [sync for index, sync in enumerate(syncs) if index == 0 or syncs[index - 1] != sync]
    return runs.count("OutOfSync") >= times and runs[-1] == "Synced"


def since_first_sync(application: Owned) -> list[Body]:
    states = application.states()
    first = next(i for i, state in enumerate(states) if state["sync"] == "Synced")
    return states[first:]
