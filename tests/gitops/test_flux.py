"""A real Flux (kustomize-controller) owns the sync of models, heads and runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from dev.gitops import Flux
from tests.gitops.artifacts import save_lines, save_log
from tests.gitops.conftest import OpenTeams
from tests.gitops.flux import Kustomization, said
from tests.gitops.rollback import assert_rolled_back, essence
from tests.gitops.team import MODEL, OBJECTS, Team, declared, edit_head, writers

from espalier.kube.objects import Body

pytestmark = pytest.mark.timeout(900)

ADVANCES = [20, pytest.param(100, marks=pytest.mark.exhaustive)]
Own = Callable[..., Awaitable[Kustomization]]


@pytest.fixture
async def own(flux: Flux, scenario: Path, tmp_path: Path) -> AsyncIterator[Own]:
    """Lets Flux own a team's repository; what it did becomes an artifact."""
    async with AsyncExitStack() as stack:

        async def make(team: Team, **spec: object) -> Kustomization:
            archives = tmp_path / f"{team.namespace}-archives"
            archives.mkdir()
            kustomization = Kustomization(flux, team, archives)
            await stack.enter_async_context(kustomization.serving())
            stack.push_async_callback(leave, kustomization)
            revision = team.repository.git("rev-parse", "HEAD")
            await kustomization.create(revision, **spec)
            await kustomization.ready(revision)
            return kustomization

        async def leave(kustomization: Kustomization) -> None:
            name = kustomization.name
            save_lines([await kustomization.get()], scenario / f"{name}-kustomization.json")
            await kustomization.stop()
            log = flux.log("kustomize-controller")
            save_log(log, scenario / f"{name}-kustomize-controller.log", name)

        yield make


async def test_it_waits_for_the_model_and_the_head_but_not_for_the_run(
    open_teams: OpenTeams, own: Own
) -> None:
    (team,) = await open_teams(1)
    kustomization = await own(team)
    assert (await team.serves(""))["current"]["name"] == ""
    # Ready once more: while Flux looks again, it says Progressing for a moment.
    await kustomization.ready(team.repository.git("rev-parse", "HEAD"))
    steps = (await team.get("TrainingRun", "arith-200"))["status"]["step"]
    assert steps < 200


@pytest.mark.parametrize("advances", ADVANCES)
async def test_advances_change_nothing_that_flux_applies(
    open_teams: OpenTeams, own: Own, flux: Flux, advances: int
) -> None:
    (team,) = await open_teams(1)
    kustomization = await own(team, interval="1s")
    before = await declared(team)
    applied = configured(flux, team)
    assert await team.advance(advances) == f"arith-{advances:06d}"
    await kustomization.reconciled()
    await kustomization.ready(team.repository.git("rev-parse", "HEAD"))
    assert await declared(team) == before
    assert await writers(team) == {"kustomize-controller"}
    assert configured(flux, team) == applied


async def test_a_hand_edit_is_taken_back_whole(open_teams: OpenTeams, own: Own) -> None:
    (team,) = await open_teams(1)
    kustomization = await own(team)
    await team.advance(3)
    await edit_head(team, mode="Pin", checkpointRef={"name": "arith-000001"})
    await kustomization.reconciled()
    await team.serves("arith-000003", "Tracking")
    # Unlike Argo CD, Flux also removes what Git does not mention.
    assert "checkpointRef" not in (await team.head())["spec"]
    await kustomization.publish(team.repository.pin("arith-000002"))
    await team.serves("arith-000002", "Pinned")
    await edit_head(team, checkpointRef={"name": "arith-000001"})
    await kustomization.reconciled()
    await team.serves("arith-000002", "Pinned")
    await kustomization.publish(team.repository.revert())
    await team.serves("arith-000003", "Tracking")
    await team.advance(1)


@pytest.mark.exhaustive
async def test_every_way_back_ends_in_the_same_head(open_teams: OpenTeams, own: Own) -> None:
    reverted, committed, republished = await open_teams(3)
    ends = await asyncio.gather(
        roll_back(reverted, lambda repository, _: repository.revert(), own),
        roll_back(committed, lambda repository, _: repository.pin("arith-000001"), own),
        roll_back(republished, lambda _, first: first, own),
    )
    assert_rolled_back(ends)


async def roll_back(team: Team, way: Callable[..., str], own: Own) -> Body:
    """Pins to step 1, to step 2 and back to step 1; the head's status in the end."""
    kustomization = await own(team)
    await team.advance(3)
    first = team.repository.pin("arith-000001")
    for revision in (first, None):
        await kustomization.publish(revision or team.repository.pin("arith-000002"))
        await team.serves("arith-000001" if revision else "arith-000002")
    back = way(team.repository, first)
    await kustomization.publish(back)
    await kustomization.ready(back)
    return essence(await team.serves("arith-000001"))


async def test_a_pin_that_cannot_be_met_fails_at_once_until_reverted(
    open_teams: OpenTeams, own: Own
) -> None:
    (team,) = await open_teams(1)
    kustomization = await own(team)
    await team.advance(2)
    await kustomization.publish(team.repository.pin("arith-000999"))
    failed = await kustomization.until(
        lambda body: said(body) == ("False", "HealthCheckFailed"), "the health check to fail"
    )
    ready = next(c for c in failed["status"]["conditions"] if c["type"] == "Ready")
    assert f"CheckpointHead/{team.namespace}/{MODEL} status: 'Failed'" in ready["message"]
    assert (await team.head())["status"]["current"]["name"] == "arith-000002"
    back = team.repository.revert()
    await kustomization.publish(back)
    await kustomization.ready(back)
    await team.serves("arith-000002", "Tracking")


async def test_models_and_heads_survive_their_removal_from_git(
    open_teams: OpenTeams, own: Own
) -> None:
    (team,) = await open_teams(1)
    kustomization = await own(team)
    await team.advance(1)
    removed = team.repository.remove("run.yaml", "head.yaml", "model.yaml")
    await kustomization.publish(removed)
    await kustomization.ready(removed)
    await team.gone("TrainingRun", "arith-200")
    for kind, name in OBJECTS[:2]:
        assert "deletionTimestamp" not in (await team.get(kind, name))["metadata"]
    await team.serves("arith-000001")


def configured(flux: Flux, team: Team) -> int:
    """How many of a team's objects Flux has created or changed so far, by its log."""
    count = 0
    for line in flux.log("kustomize-controller").read_text().splitlines():
        if "server-side apply" not in line or team.namespace not in line:
            continue
        output = json.loads(line).get("output", {})
        count += sum(action in ("created", "configured") for action in output.values())
    return count
