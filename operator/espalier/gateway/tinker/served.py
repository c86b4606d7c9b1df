"""Sessions and models by their ids, as far as their namespaces are served."""

from __future__ import annotations

from espalier.gateway.tinker.names import Session, TinkerModel
from espalier.gateway.tinker.refusals import unknown
from espalier.gateway.world.world import ServedWorld


def session_of(world: ServedWorld, text: str) -> Session:
    """The session of an id; 404 if it is none of a served namespace."""
    session = Session.read(text)
    if session is None or session.namespace not in world.namespaces:
        raise unknown("session_id", text)
    return session


def model_of(world: ServedWorld, text: str, field: str = "model_id") -> TinkerModel:
    """The model of an id, which may be gone; 404, naming ``field``, if it is none of a served
    namespace."""
    model = TinkerModel.read(text)
    if model is None or model.trained.namespace not in world.namespaces:
        raise unknown(field, text)
    return model
