"""The requests that futures are of.

Whoever shows a future may have written it: one of no request is unknown, RefusalError 404. Pure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from pydantic import ValidationError

from espalier.gateway.tinker import sampling
from espalier.gateway.tinker.bodies import Sample, TinkerBody
from espalier.gateway.tinker.futures import Future, sample_details
from espalier.gateway.tinker.names import Sampler, TinkerModel
from espalier.gateway.tinker.refusals import unknown

T = TypeVar("T", bound=TinkerBody)


def model_of(future: Future) -> TinkerModel:
    """The model that a future is of."""
    model = TinkerModel.read(future.subject)
    if model is None:
        raise unknown("request_id", str(future))
    return model


def sample_of(text: str, future: Future, sampler: Sampler) -> Sample:
    """The request of a sample's id."""
    details = sample_details(text)
    if details is None:
        raise unknown("request_id", text)
    known = {"sampling_session_id": str(sampler), "seq_id": future.number}
    request = asked_of(Sample, replace(future, details=details), known)
    if sampling.problem(request):
        raise unknown("request_id", text)
    return request


def asked_of(kind: type[T], future: Future, known: dict[str, object]) -> T:
    """The request that a future is of; whoever shows the future may have written it."""
    try:
        return kind.model_validate({**future.details, **known})
    except ValidationError as error:
        raise unknown("request_id", f"{future.kind}/{future.subject}/{future.number}") from error
