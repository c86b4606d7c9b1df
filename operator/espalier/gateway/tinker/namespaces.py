"""The namespace that a client's models are made in."""

from __future__ import annotations

from espalier.gateway.access.auth import Authenticator, User
from espalier.gateway.access.offers import may_fork
from espalier.gateway.problems import RefusalError
from espalier.gateway.world.watch import WorldWatch

_ACCOUNT = "system:serviceaccount:"


class Namespaces:
    """Finds the namespace of a session: its project, or that of the caller's service account."""

    def __init__(self, watch: WorldWatch, auth: Authenticator) -> None:
        self._watch = watch
        self._auth = auth

    async def of(self, user: User, project: str | None) -> str:
        """The namespace.

        Raises:
            RefusalError: 404, the project is no served namespace; 403, the caller may make no
                models in it; 422, it is not clear which is meant.
        """
        served = self._watch.world.namespaces
        if project is not None:
            if project not in served:
                raise RefusalError(
                    404,
                    "ProjectNotFound",
                    f"project_id: {project[:63]!r} is no namespace that is served",
                    await self._choices(user),
                )
            if not await may_fork(self._auth, user, project):
                raise RefusalError(
                    403,
                    "Forbidden",
                    f"{user.name} may not create models in namespace {project}",
                    "Grant verb create on trainablemodels, trainingruns and checkpointheads by a "
                    "Role and a RoleBinding, or name another project_id",
                )
            return project
        own = user.name.removeprefix(_ACCOUNT).partition(":")[0]
        if user.name.startswith(_ACCOUNT) and own in served:
            return own
        usable = [name for name in served if await may_fork(self._auth, user, name)]
        if len(usable) == 1:
            return usable[0]
        raise RefusalError(
            422,
            "ProjectUnclear",
            f"project_id: it is not clear which namespace {user.name} means",
            await self._choices(user),
        )

    async def _choices(self, user: User) -> str:
        served = self._watch.world.namespaces
        usable = [name for name in served if await may_fork(self._auth, user, name)]
        if usable:
            return f"Set project_id (TINKER_PROJECT_ID) to one of {', '.join(usable)}"
        return "Have somebody grant you to create models in a served namespace"
