"""A runner acts on its own run alone, though its service account may act on every run beside it.

All runners of a namespace share a service account, and code of a task's author may run beside one.
The token that the kubelet gives to a pod names the pod, and the API server repeats that name when
it reviews the token; the pod's chain of controllers leads to its run.
"""

from __future__ import annotations

from espalier.core.names import RUNNER_ACCOUNT
from espalier.gateway.world.watch import WorldWatch
from espalier.gateway.world.world import NamespacedName
from espalier.kube.cluster import Extra

# https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"
_ACCOUNT = "system:serviceaccount:"


class OwnRun:
    """Finds the run of a runner. ``watch``: the cluster as it is now."""

    def __init__(self, watch: WorldWatch) -> None:
        self._watch = watch

    def refusal(
        self, user: str, extra: Extra, verb: str, resource: str, target: NamespacedName
    ) -> str:
        """Why a runner may not do this to an object that is not of its run; empty if it may.

        Of models it may read and sample all that its service account may: rewards are models too.
        """
        namespace = _namespace_of_runner(user)
        if not namespace or resource.partition("/")[0] == "trainablemodels":
            return ""
        known = dict(extra)
        (pod,), (uid,) = known.get(POD_NAME, ("",)), known.get(POD_UID, ("",))
        run = self._watch.run_of(NamespacedName(namespace, pod), uid)
        if run is None:
            return f"{user} may not {verb} {resource} {target}: the token is of no runner's pod"
        if self._is_of(run, resource, target):
            return ""
        return f"the runner of TrainingRun {run} may not {verb} {resource} {target}"

    def _is_of(self, run: NamespacedName, resource: str, target: NamespacedName) -> bool:
        if resource == "trainingruns":
            return target == run
        world = self._watch.world
        found, driven = world.checkpoints.get(target), world.runs.get(run)
        if resource != "checkpoints" or target.namespace != run.namespace:
            return False
        if found is None or driven is None:
            return False
        model = run.beside(driven.spec.model_ref.name)
        # A fork's first evaluation is of the checkpoint that it starts from.
        origin = world.models[model].spec.source.checkpoint_ref if model in world.models else None
        return found.spec.model_ref.name == model.name or (
            origin is not None and origin.name == target.name
        )


def _namespace_of_runner(user: str) -> str:
    """The namespace of a runner's service account; empty if the user is another one."""
    namespace, _, account = user.removeprefix(_ACCOUNT).partition(":")
    return namespace if user.startswith(_ACCOUNT) and account == RUNNER_ACCOUNT else ""
