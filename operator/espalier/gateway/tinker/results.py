"""Answers of retrieve_future: a result, an error with whose fault it is, or that it takes longer.

A 408 is held until its time is over, because the client polls again at once.
"""

from __future__ import annotations

import asyncio

from espalier.gateway.access.audit import Act
from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.byte_budget import Hold
from espalier.gateway.access.pod_faults import refusal_of
from espalier.gateway.access.rights import SAMPLE, SEE
from espalier.gateway.problems import RefusalError
from espalier.gateway.routes.fresh_checkpoint import promotion
from espalier.gateway.routes.trainer_lookup import TrainerLookup
from espalier.gateway.routes.training_access import TrainingAccess
from espalier.gateway.tinker.bodies import SaveWeights
from espalier.gateway.tinker.commands import Answer, Commands
from espalier.gateway.tinker.future_requests import asked_of, model_of, sample_of
from espalier.gateway.tinker.futures import Future
from espalier.gateway.tinker.models import stalled
from espalier.gateway.tinker.names import (
    EXTERNAL,
    PathKind,
    Sampler,
    TinkerModel,
    WeightsPath,
    is_name,
)
from espalier.gateway.tinker.outcomes import Done, Failed, Outcome, Pending
from espalier.gateway.tinker.refusals import passes, unknown
from espalier.gateway.tinker.samples import SAMPLE_REFUSED, Samples, key_of
from espalier.gateway.tinker.save_requests import sees
from espalier.gateway.tinker.saves import Saves, find, is_made
from espalier.gateway.world.routing import NotReady
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName
from espalier.podclient import PodFaultError
from espalier.tinker.results import PROTOBUF
from espalier.untrusted import UnreadableError, read_json

# Less than the 45 s after which the client gives a poll up.
HOLD_SECONDS = 25.0
PROMOTION_SECONDS = 25.0
LOOK_AGAIN_SECONDS = 2.0
# The kinds of paths of what is saved otherwise than as a state; a name of these is given anew.
_PATHS: dict[str, PathKind] = {
    "save_weights_for_sampler": "sampler_weights",
    "save_weights_external": EXTERNAL,
}


class Results:
    """Finds out what became of a request."""

    def __init__(  # noqa: PLR0917 what the four kinds need
        self,
        watch: WorldWatch,
        auth: Authenticator,
        access: TrainingAccess,
        trainers: TrainerLookup,
        commands: Commands,
        samples: Samples,
        saves: Saves,
    ) -> None:
        self._watch = watch
        self._auth = auth
        self._access = access
        self._trainers = trainers
        self._commands = commands
        self._samples = samples
        self._saves = saves

    async def begin(self, user: User, text: str, future: Future, act: Act, held: Hold) -> str:
        """Begins the sample of a request's id, unless it is; what it is known by from now on.

        Args:
            user: who asks.
            text: the id, which has the request and is not needed any more.
            future: the same, without its request.
            act: told where it is begun.
            held: room of the poll, which is given back: the sample has its own.
        """
        sampler = Sampler.read(future.subject)
        if sampler is None:
            raise unknown("request_id", text)
        act.of("TrainableModel", sampler.model, after=sampler.ref)
        await self._auth.require(user, *SAMPLE, sampler.model)
        key = key_of(user, text)
        act.told = not self._samples.knows(key)
        # Nothing from here to the end waits.
        held.release()
        if act.told:
            await self._samples.begin(key, user, sampler, sample_of(text, future, sampler))
        return key

    async def outcome(self, user: User, text: str, future: Future, act: Act) -> Outcome:
        """What became of it, within HOLD_SECONDS; the act is told where asking does something.

        ``text`` is the request's id; of a sample what ``begin`` returned.
        """
        try:
            return await self._outcome(user, text, future, act)
        except PodFaultError as fault:
            # Asked again, the pod would say the same.
            return Failed(refusal_of(self._watch.world, fault).message, "server")

    async def _outcome(self, user: User, text: str, future: Future, act: Act) -> Outcome:
        until = asyncio.get_running_loop().time() + HOLD_SECONDS
        match future.kind:
            case "failed":
                details = future.details
                return Failed(str(details.get("error")), str(details.get("category")))
            case "sample":
                return await self._sample(text, until)
            case "create":
                return await self._created(user, future, until)
            case "train":
                return await self._trained(user, future, until)
            case "save":
                return await self._saved(user, text, future, act, until)

    async def _sample(self, key: str, until: float) -> Outcome:
        try:
            found = await self._samples.result(key, _left(until))
        except RefusalError as refusal:
            if refusal.reason == SAMPLE_REFUSED and refusal.status >= 500:
                return Failed(refusal.message, "server")
            return await self._refused(refusal, until)
        if isinstance(found, NotReady):
            return Pending(f"{found.reason}: {found.message}", paused=True)
        return Pending() if found is None else Done(found)

    async def _created(self, user: User, future: Future, until: float) -> Outcome:
        model = model_of(future)
        await self._auth.require(user, *SEE, model.trained)
        await self._watch.wait_for(
            lambda world: world.models.get(model.trained), min(_left(until), LOOK_AGAIN_SECONDS)
        )
        while True:
            world = self._watch.world
            if model.trained not in world.models:
                return Failed(f"model {model.trained} was deleted")
            if problem := stalled(world, model.trained):
                return Failed(problem)
            try:
                # First: a trainer that was freed is called back for those who may train alone.
                await self._access.require(user, model.trained)
                await self._trainers.ready(model.trained, max(_left(until), 0.1))
            except RefusalError as refusal:
                if not passes(refusal) and refusal.reason != "NoActiveRun":
                    return Failed(refusal.message)
                if _left(until) <= LOOK_AGAIN_SECONDS:
                    return Pending(f"{refusal.reason}: {refusal.message}", paused=True)
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
                continue
            kind = "load_weights" if future.details else "create_model"
            return Done({"model_id": str(model), "type": kind, **future.details})

    async def _trained(self, user: User, future: Future, until: float) -> Outcome:
        answer = await self._answer(user, future, until)
        if not isinstance(answer, Answer):
            return answer
        return Done(answer.body if answer.content_type == PROTOBUF else _object(answer))

    async def _saved(
        self, user: User, text: str, future: Future, act: Act, until: float
    ) -> Outcome:
        answer = await self._answer(user, future, until)
        if not isinstance(answer, Answer):
            return answer
        result, model = _object(answer), model_of(future)
        checkpoint = str(result.get("checkpoint") or "")
        asked = asked_of(SaveWeights, future, {"model_id": str(model), "seq_id": future.number})
        if model.session is None or (asked.path is not None and not is_name(asked.path)):
            raise unknown("request_id", text)
        if asked.path is None:
            return await self._ephemeral(model, asked, checkpoint, str(result.get("digest")), until)
        if checkpoint and (unmade := await self._unmade(model.trained, checkpoint, until)):
            return unmade
        kind = _PATHS.get(asked.type, "weights")
        if kind == EXTERNAL and not checkpoint:
            return Failed(
                "the model has not been trained: its weights are those of the base. Take a step "
                "first, or download the base"
            )
        path = WeightsPath(model, kind, asked.path)
        act.target, act.after = f"model {model}", asked.path
        before = find(self._watch.world, path)
        recorded = await self._saves.record(
            path,
            checkpoint,
            ttl_seconds=asked.ttl_seconds,
            metadata=asked.user_metadata,
            overwrite=asked.overwrite or asked.type in _PATHS,
        )
        if recorded.problem:
            return Failed(recorded.problem)
        act.before = before.checkpoint if before is not None else ""
        act.told = recorded.wrote
        return Done({"path": str(path), "type": asked.type})

    async def _unmade(
        self, trained: NamespacedName, checkpoint: str, until: float
    ) -> Outcome | None:
        """Why the Checkpoint that a trainer says it saved gets no name; None if there it is.

        Raises:
            PodFaultError: it is of a model whose weights the trainer does not have.
        """
        world = self._watch.world
        if not await self._watch.wait_for(
            lambda world: is_made(world, trained, checkpoint) or None, _left(until)
        ):
            return Pending(f"the operator has yet to make Checkpoint {checkpoint}")
        found = world.checkpoints.get(trained.beside(checkpoint))
        if found is None:
            return Failed(f"Checkpoint {checkpoint} was deleted")
        model = world.models.get(trained)
        if model is None:
            return Failed(f"model {trained} was deleted")
        if sees(model, found):
            return None
        pod = world.ready_trainer(trained)
        raise PodFaultError(
            "PodAnswerUnknown",
            pod.address if pod is not None else "",
            f"says that it saved Checkpoint {checkpoint}, which is of model "
            f"{found.spec.model_ref.name}",
        )

    async def _ephemeral(
        self, model: TinkerModel, asked: SaveWeights, checkpoint: str, digest: str, until: float
    ) -> Outcome:
        """A sampler of the checkpoint, or of the head once that has come as far."""
        ref = checkpoint or "base"
        if asked.kind == "inflight":
            if checkpoint:
                served = await self._watch.wait_for(
                    lambda world: promotion(world, model.trained, checkpoint, digest), _left(until)
                )
                if served is None:
                    return Pending(f"the rollouts of {model.trained} take up {checkpoint}")
                if served != "Served":
                    return Failed(
                        f"the head of {model.trained} does not follow training ({served}): an "
                        "inflight sampler would not see the new weights. Set its spec.mode to "
                        "Track without a gate, or take a snapshot"
                    )
            ref = ""
        session = model.session
        assert session is not None, "only models of a session are saved"
        sampler = Sampler(session, asked.sampling_session_seq_id or 0, model.trained, ref)
        return Done({"sampling_session_id": str(sampler), "type": asked.type})

    async def _answer(self, user: User, future: Future, until: float) -> Answer | Outcome:
        """The trainer's result; or that it has none yet, or that it failed."""
        model = model_of(future)
        if model.trained not in self._watch.world.models:
            await self._auth.require(user, *SEE, model.trained)
            return Failed(f"model {model.trained} was deleted")
        try:
            await self._access.require_run(user, model.trained)
            answer = await self._commands.result(model, future.number, max(_left(until), 1.0))
        except RefusalError as refusal:
            if refusal.status == 403:
                raise
            # A trainer that is held has no pod: why it is held says more.
            return await self._refused(self._access.held(model.trained) or refusal, until)
        if answer.status == 200:
            result = {} if answer.content_type == PROTOBUF else _object(answer)
            if "error" in result:
                return Failed(str(result["error"]), str(result.get("category", "unknown")))
            return answer
        if answer.status == 404:
            return Failed(
                f"the trainer of {model.trained} knows of no request {future.number} of {model}",
                "server",
            )
        waits = _object(answer)
        if answer.status != 408:
            await asyncio.sleep(max(min(_left(until), LOOK_AGAIN_SECONDS), 0.0))
        return Pending(f"{waits.get('reason', answer.status)}: {waits.get('detail', '')}")

    async def _refused(self, refusal: RefusalError, until: float) -> Outcome:
        if not passes(refusal):
            return Failed(refusal.message)
        await asyncio.sleep(max(min(_left(until), LOOK_AGAIN_SECONDS), 0.0))
        return Pending(f"{refusal.reason}: {refusal.message}", paused=True)


def _left(until: float) -> float:
    return until - asyncio.get_running_loop().time()


def _object(answer: Answer) -> dict[str, object]:
    """The JSON object of an answer; empty where it is none."""
    try:
        found = read_json(answer.body)
    except UnreadableError:
        return {}
    return found if isinstance(found, dict) else {}
