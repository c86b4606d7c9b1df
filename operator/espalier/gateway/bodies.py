"""Reads a request's body as one of our types; what does not fit is a 422 naming the field."""

from __future__ import annotations

from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from espalier.gateway.problems import RefusalError

Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: web.Request, kind: type[Body]) -> Body:
    """The body; RefusalError 422 with the first field that does not fit."""
    try:
        return kind.model_validate_json(await request.read())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(step) for step in first["loc"]) or "body"
        fields = ", ".join(kind.model_fields)
        raise RefusalError(
            422, "InvalidRequest", f"{field}: {first['msg']}", f"The fields are {fields}"
        ) from error
