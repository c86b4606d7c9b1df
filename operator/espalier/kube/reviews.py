"""What the API server's reviews are asked and answer: whose a token is, and who may do what."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.kube.cluster import Extra, TokenReviewResult
from espalier.kube.objects import Body, kind_of


def token_review(token: str, audiences: Sequence[str]) -> Body:
    """The spec of a TokenReview; without audiences, of the API server's own."""
    return {"token": token, "audiences": [*audiences]} if audiences else {"token": token}


def token_reviewed(status: Body) -> TokenReviewResult:
    """What the status of a TokenReview says."""
    user = status.get("user", {})
    return TokenReviewResult(
        authenticated=status.get("authenticated", False),
        username=user.get("username", ""),
        uid=user.get("uid", ""),
        groups=tuple(user.get("groups", ())),
        audiences=tuple(status.get("audiences", ())),
        extra=tuple(sorted((k, tuple(v)) for k, v in (user.get("extra") or {}).items())),
        error=status.get("error", ""),
    )


def access_review(  # noqa: PLR0917 the attributes of a SubjectAccessReview
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
) -> Body:
    """The spec of a SubjectAccessReview; ``resource`` may name a subresource after a slash."""
    named, _, subresource = resource.partition("/")
    attributes = {
        "verb": verb,
        "group": group,
        "resource": named,
        "namespace": namespace,
        "name": name,
    }
    if subresource:
        attributes["subresource"] = subresource
    spec: Body = {"user": user, "groups": [*groups], "resourceAttributes": attributes}
    if uid:
        spec["uid"] = uid
    if extra:
        spec["extra"] = {key: [*values] for key, values in extra}
    return spec


def own_access_review(verb: str, kind: str, namespace: str, subresource: str) -> Body:
    """The spec of a SelfSubjectAccessReview of objects of a kind."""
    known = kind_of(kind)
    attributes = {
        "verb": verb,
        "group": known.group,
        "resource": known.plural,
        "subresource": subresource,
        "namespace": namespace,
    }
    return {"resourceAttributes": attributes}
