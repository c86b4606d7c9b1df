"""What the API server's reviews are asked and answer: whose a token is, and who may do what."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.kube.cluster import TokenReviewResult
from espalier.kube.objects import Body


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


def resource_attributes(
    verb: str, group: str, resource: str, namespace: str, name: str = ""
) -> Body:
    """What a review of access is of; ``resource`` may name a subresource after a slash."""
    named, _, subresource = resource.partition("/")
    return {
        "verb": verb,
        "group": group,
        "resource": named,
        "subresource": subresource,
        "namespace": namespace,
        "name": name,
    }
