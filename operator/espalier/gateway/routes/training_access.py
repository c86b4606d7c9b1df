"""Who may train a model now, and the values of its run that bind what they send."""

from __future__ import annotations

from espalier.api.trainingrun import TrainingRun
from espalier.api.wire.headers import DECLARED
from espalier.core.run.declared import declared
from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.rights import SEE, TRAIN
from espalier.gateway.problems import RefusalError
from espalier.gateway.world.turn import active_run, is_paused, misaligned
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName, ServedWorld


class TrainingAccess:
    """Refuses callers who may not train a model, and everyone while nobody may."""

    def __init__(self, watch: WorldWatch, auth: Authenticator) -> None:
        self._watch = watch
        self._auth = auth

    async def require(self, user: User, model: NamespacedName) -> None:
        """Training is ``update`` on the active run; no run, or a head that pauses it, is a 409."""
        await self.require_run(user, model)
        if (held := self.held(model)) is not None:
            raise held

    def held(self, model: NamespacedName) -> RefusalError | None:
        """Why nobody may train a model until somebody lets it go; None if nothing holds it."""
        world = self._watch.world
        run = active_run(world, model)
        if run is None:
            return _suspended(world, model)
        if is_paused(world, model):
            return RefusalError(
                409,
                "HeadPinned",
                f"the head of {model} is pinned, and onPin: Pause holds training",
                "Set the head's spec.mode to Track, or spec.onPin to Branch",
            )
        if found := misaligned(run):
            return RefusalError(
                409,
                "LogprobsMisaligned",
                f"TrainingRun {model.beside(run.metadata.name)} is held: {found}",
                "Raise the run's logprobs.mismatchKLThreshold, or set logprobs.onMisaligned: Warn",
            )
        return None

    async def require_run(self, user: User, model: NamespacedName) -> TrainingRun:
        """The active run, which the caller may update; 409 if there is none."""
        # First, so that nobody learns by it which models and runs there are.
        await self._auth.require(user, *SEE, model)
        run = active_run(self._watch.world, model)
        if run is None:
            raise RefusalError(
                409,
                "NoActiveRun",
                f"no TrainingRun trains model {model} now",
                "Create one with spec.modelRef.name "
                f"{model.name} (driver: Client to drive it yourself), or resume or extend one",
            )
        name = model.beside(run.metadata.name)
        await self._auth.require(user, *TRAIN, name)
        return run


def _suspended(world: ServedWorld, model: NamespacedName) -> RefusalError | None:
    for run in world.runs_of(model):
        if run.spec.suspend and run.metadata.deletion_timestamp is None:
            return RefusalError(
                409,
                "RunSuspended",
                f"TrainingRun {model.beside(run.metadata.name)} is suspended",
                "Set its spec.suspend to false",
            )
    return None


def declared_header(world: ServedWorld, model: NamespacedName) -> dict[str, str]:
    """Headers with the values of the active run that bind a command."""
    bound = binding(world, model)
    return {DECLARED: bound} if bound else {}


def binding(world: ServedWorld, model: NamespacedName) -> str:
    """The values of the active run that bind its client, as JSON; empty if it has none."""
    run = active_run(world, model)
    bound = declared(run) if run is not None else None
    return "" if bound is None else bound.model_dump_json(exclude_none=True)
