"""Writes to the API server in a caller's name: by impersonation, and not with rights of our own.

So the API server decides by the caller's rights, admission policies see the caller, and its audit
log names both. Which callers it may act for is what RBAC says: docs/operations/security.md.
"""

from __future__ import annotations

from espalier.core.gitowner import GATEWAY_MANAGER
from espalier.gateway.access.auth import User
from espalier.gateway.problems import RefusalError, not_ready
from espalier.kube.cluster import HTTP_FORBIDDEN, HTTP_UNPROCESSABLE, Cluster, ClusterError

_ACCOUNT = "system:serviceaccount:"
# The API server adds it to whoever is impersonated.
_EVERYBODY = "system:authenticated"
_BAD_REQUEST = 400


def acting_for(cluster: Cluster, user: User) -> Cluster:
    """The cluster as a caller sees it.

    The API server adds the groups of a service account itself, which takes no right to impersonate
    groups. Extra is carried whole, because an authorizer may limit a token by it: without it the
    caller would be let do more.
    """
    account = user.name.startswith(_ACCOUNT)
    groups = () if account else tuple(name for name in user.groups if name != _EVERYBODY)
    return cluster.acting_for(
        user.name, groups, uid=user.uid, extra=user.extra, manager=GATEWAY_MANAGER
    )


def refused(error: ClusterError, user: User, what: str, passing: str) -> RefusalError:
    """What the API server's refusal of a write means to the caller.

    Args:
        error: as it was raised.
        user: the caller.
        what: was to be written, such as ``CheckpointHead ml/arith``.
        passing: the reason if the same request may be taken a moment later.
    """
    if error.status == HTTP_FORBIDDEN and "cannot impersonate" in error.message:
        return RefusalError(
            403,
            "NotImpersonated",
            f"{what}: the gateway may not write in the name of {user.name}: {_what(error.message)}",
            "Name the user, its groups, and the keys of its extra in gateway.impersonation of the "
            "chart, or call as a service account of a served namespace",
        )
    if error.status == HTTP_FORBIDDEN:
        return RefusalError(403, "Forbidden", f"{what}: {error.message}")
    if error.status in (_BAD_REQUEST, HTTP_UNPROCESSABLE):
        return RefusalError(422, error.reason, f"{what}: {error.message}")
    return not_ready(passing, f"{what} was not written: {error.message}")


def _what(message: str) -> str:
    """The part of the API server's refusal that says whom or what may not be impersonated."""
    return message[message.index("cannot impersonate") :].partition(" in API group")[0]
