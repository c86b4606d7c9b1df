"""Classifies the hub's errors: when to try again, and what only a person can fix."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from espalier.api.wire.problem import Problem
from espalier.trainer.jobs.hub_repository import Repository
from espalier.trainer.problems import UserMistakeError

BUSY = (408, 425, 429)


class HubError(Exception):
    """The hub is away or busy and a retry may succeed, after ``seconds`` if it named them."""

    def __init__(self, problem: Problem, seconds: float = 0.0) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.seconds = seconds

    @classmethod
    def busy(cls, response: httpx2.Response) -> HubError | None:
        """The error for an answer that asks to retry later; None for any other answer."""
        status = response.status_code
        if status not in BUSY and status < 500:
            return None
        seconds = _asked(response)
        later = f", and asks to wait {seconds:.0f} s" if seconds else ""
        host = response.request.url.host
        return cls(Problem(reason="HubBusy", detail=f"{host} answers {status}{later}"), seconds)

    @classmethod
    def lasting(
        cls, what: str, repository: Repository, error: Exception, patience: float
    ) -> HubError:
        """The error after it lasted for all of ``patience`` seconds."""
        busy = isinstance(error, HubError)
        detail = (
            f"{repository.field}: {what} of {repository} did not come from {constants.ENDPOINT} "
            f"within {patience:.0f} s without progress. Last error: {error or type(error).__name__}"
        )
        return cls(
            Problem(
                reason="HubBusy" if busy else "HubUnreachable",
                detail=detail,
                remedy="what has come is kept, and the next try goes on from there; "
                "check the network, and hub.* in the chart's values for a mirror, proxy or CA",
            )
        )


def retry_seconds(error: Exception) -> float | None:
    """Seconds that the hub asks to wait, 0 if it names none; None if a retry cannot help."""
    if isinstance(error, HubError):
        return error.seconds
    if isinstance(error, HfHubHTTPError):
        # The hub does not have the range: fetch the file again.
        return 0.0 if error.response.status_code == 416 else None
    # The network's, and the client's own for a file of the wrong length, have no errno.
    if isinstance(error, OSError) and error.errno is None:
        return 0.0
    return None


def refusal(error: Exception, repository: Repository, *, given: bool) -> UserMistakeError | None:
    """The mistake that only a person can fix; ``given``: a token was sent."""
    if isinstance(error, OfflineModeIsEnabled):
        return UserMistakeError(
            "HubOffline",
            f"{repository.field}: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set",
            "unset it, or put the files into an image or on a claim",
        )
    if not isinstance(error, HfHubHTTPError):
        return None
    for kind, explain in (
        (GatedRepoError, _gated),
        (RevisionNotFoundError, _revision),
        (RemoteEntryNotFoundError, _entry),
        (RepositoryNotFoundError, _repository),
    ):
        if isinstance(error, kind):
            return explain(repository, error.response.status_code, given=given)
    return _other(repository, error)


def _gated(repository: Repository, status: int, *, given: bool) -> UserMistakeError:
    page = f"{constants.ENDPOINT}/{repository.name}"
    if not given:
        return _token_missing(repository, "is gated")
    if status == 401:
        return _token_refused(repository)
    return UserMistakeError(
        "LicenceNotAccepted",
        f"{repository.field}: {repository.name} is gated, and the account of the token has not "
        "been given access (403)",
        f"accept its licence at {page} with that account, or give the token of another",
    )


def _revision(repository: Repository, status: int, *, given: bool) -> UserMistakeError:
    return UserMistakeError(
        "RevisionNotFound",
        f"{repository.field}.revision: {repository.name} has no commit {repository.revision}",
        "copy the full hash of a commit from the repository's history",
    )


def _entry(repository: Repository, status: int, *, given: bool) -> UserMistakeError:
    return UserMistakeError(
        "BaseUnreadable",
        f"{repository.field}: {constants.ENDPOINT} lists a file of {repository} that it does not "
        "have",
        "check the mirror that hub.endpoint of the chart's values names",
    )


def _repository(repository: Repository, status: int, *, given: bool) -> UserMistakeError:
    # Without a token the hub answers 401 for private and for absent repositories alike.
    if status == 401 and not given:
        return _token_missing(repository, "does not exist, or is private")
    return UserMistakeError(
        "RepositoryNotFound",
        f"{repository.field}.repository: {constants.ENDPOINT} has no {repository.name}"
        + (" that the token may read" if given else ""),
        "check owner and name; a private one needs a token of an account that may read it",
    )


def _other(repository: Repository, error: HfHubHTTPError) -> UserMistakeError | None:
    status = error.response.status_code
    if status == 416:
        return None
    if status == 401:
        return _token_refused(repository)
    if status == 403:
        reason = error.response.headers.get("X-Error-Message", "no reason given")
        return UserMistakeError(
            "TokenForbidden",
            f"{repository.field}: {constants.ENDPOINT} forbids reading {repository.name} (403): "
            f"{reason}",
            "give a token with the right to read it; a fine-grained one must name the repository",
        )
    return UserMistakeError(
        "BaseUnreadable",
        f"{repository.field}: {constants.ENDPOINT} answers {status} for {repository}",
        "check repository and revision, and the mirror that hub.endpoint of the chart's values "
        "names",
    )


def _token_missing(repository: Repository, what: str) -> UserMistakeError:
    return UserMistakeError(
        "TokenMissing",
        f"{repository.field}: {repository.name} {what}, and no token was given",
        f"name a Secret in {repository.field}.tokenSecretRef, and accept the licence where there "
        "is one",
    )


def _token_refused(repository: Repository) -> UserMistakeError:
    return UserMistakeError(
        "TokenRefused",
        f"{repository.field}.tokenSecretRef: {constants.ENDPOINT} does not accept the token (401)",
        "put a valid token of the hub into the Secret",
    )


def _asked(response: httpx2.Response) -> float:
    """Seconds of Retry-After, in either of its forms, or of the hub's rate limit."""
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
