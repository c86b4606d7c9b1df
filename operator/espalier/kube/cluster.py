"""The port to the API server: the calls that Espalier makes, and their errors.

Status is written by server-side apply on ``/status`` under its own field manager, children by
server-side apply with complete intent; a user's spec, labels and annotations are never written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from espalier.kube.objects import Body, ObjectKey

MANAGER = "espalier"
STATUS_MANAGER = "espalier-status"

# What an authenticator says of a user besides name, uid and groups, in the order of the keys.
Extra = tuple[tuple[str, tuple[str, ...]], ...]

Propagation = Literal["Background", "Foreground", "Orphan"]

# The status of a ClusterError that lasts until somebody grants a right.
HTTP_FORBIDDEN = 403
# The status of a ClusterError for a kind that the API server does not know.
HTTP_NOT_FOUND = 404
# The status of a ClusterError for an object that is not as it was thought to be.
HTTP_CONFLICT = 409
# The status of a ClusterError for a body with invalid values.
HTTP_UNPROCESSABLE = 422


# Called before each write, in the same step of the event loop; raises if writing is not allowed.
BeforeWrite = Callable[[], None]


def always() -> None:
    """Allows every write."""


class ClusterError(Exception):
    """The API server refused a call, or could not be reached (status 0).

    ``retry_after``: seconds to wait before the next call, 0 if the server named none.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{reason} ({status}): {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


@dataclass(frozen=True)
class TokenReviewResult:
    """Who a bearer token belongs to; ``error`` says why it was not accepted."""

    authenticated: bool
    username: str = ""
    uid: str = ""
    groups: tuple[str, ...] = ()
    audiences: tuple[str, ...] = ()
    extra: Extra = ()
    error: str = ""


class Cluster(Protocol):
    """What Espalier asks of an API server. Every call raises ClusterError when it fails."""

    async def get(self, key: ObjectKey) -> Body | None:
        """The live object, or None if it does not exist."""

    async def list(
        self,
        kind: str,
        namespace: str | None,
        labels: Mapping[str, str] | None = None,
        *,
        fields: Mapping[str, str] | None = None,
    ) -> list[Body]:
        """The live objects of a namespace (of all when None) that carry all these labels.

        And ``fields``: paths of selectable fields, such as ``involvedObject.kind`` of Events.
        """

    async def each(
        self,
        kind: str,
        namespace: str | None,
        take: Callable[[Body], None],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Call ``take`` with each object of such a list, with a page in memory at a time."""

    async def apply(self, kind: str, body: Body, *, manager: str = MANAGER) -> Body:
        """Server-side apply, forced: the object becomes what ``body`` says in the fields it names.

        Fields that this manager applied before and ``body`` leaves out are removed.
        """

    async def apply_status(self, kind: str, body: Body, *, manager: str = STATUS_MANAGER) -> Body:
        """Server-side apply of ``status`` alone, forced; 404 if the object is gone.

        ``metadata.uid`` and ``metadata.resourceVersion``, where given, must still be the object's:
        409 otherwise.
        """

    async def create(self, kind: str, body: Body) -> Body | None:
        """Create the object; None if one of that name exists."""

    async def replace(self, kind: str, body: Body) -> Body:
        """Replace the object at its ``resourceVersion``; 409 if another writer was faster."""

    def acting_for(
        self,
        user: str,
        groups: Sequence[str],
        *,
        uid: str = "",
        extra: Extra = (),
        manager: str,
    ) -> Cluster:
        """This cluster as a user sees it: the API server decides by the user's rights.

        Args:
            user: who is impersonated.
            groups: of the user; of a service account the API server knows them.
            uid: of the user, if known.
            extra: what else its authenticator said, by which some decide.
            manager: the manager of the fields that are written so.
        """

    async def delete(
        self, key: ObjectKey, *, propagation: Propagation = "Background", uid: str | None = None
    ) -> None:
        """Delete the object (only the one of this uid, if given); do nothing if it is gone."""

    async def review_token(self, token: str, audiences: Sequence[str]) -> TokenReviewResult:
        """TokenReview for any of these audiences, or the API server's own when there are none."""

    async def review_access(  # noqa: PLR0917 the attributes of a SubjectAccessReview
        self,
        user: str,
        groups: Sequence[str],
        verb: str,
        group: str,
        resource: str,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        extra: Extra = (),
    ) -> bool:
        """SubjectAccessReview: may the user do this to the named object?

        ``resource`` may have a subresource: ``trainablemodels/sample``. ``uid`` and ``extra`` are
        of the user: an authorizer's webhook may decide by them.
        """
