"""Refuses a body on which vLLM's own checks break, as it does one that they refuse.

Some checks of vLLM take a field for an object before anything has looked at its type. On a body
such as ``{"structured_outputs": "x"}`` they end with AttributeError, which is answered with a 500.
What a check of a body does follows from the body alone, before any engine is asked: whatever it
raises, the body is at fault.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

# Below vLLM's own logger, which is configured in every one of its processes.
_log = logging.getLogger("vllm.espalier.body")

Checked = tuple[Any, list[dict[str, Any]]]
NO_OBJECT = "the body is no JSON object: send one"
CONTRADICTION = "the fields of the body contradict each other: leave out what is not needed"


def install() -> None:
    """Makes FastAPI refuse such a body with vLLM's 400."""
    from fastapi._compat import ModelField  # noqa: PLC0415
    from vllm.exceptions import VLLMError  # noqa: PLC0415

    # AttributeError where FastAPI has it no more.
    checked = refusing(ModelField.validate, (VLLMError, MemoryError))
    ModelField.validate = checked  # type: ignore[method-assign]


def refusing(
    validate: Callable[..., Checked], answered: tuple[type[Exception], ...] = ()
) -> Callable[..., Checked]:
    """The same check of a value, that also refuses what it breaks on.

    Args:
        validate: FastAPI's ``ModelField.validate``, which catches ValidationError alone.
        answered: what it raises on purpose, or that is no fault of the body.
    """

    def checked(self: Any, value: Any, *others: Any, **named: Any) -> Checked:
        try:
            return validate(self, value, *others, **named)
        except answered:
            raise
        except Exception as error:
            # Its text may quote the body, which is nobody's but the caller's.
            where = traceback.extract_tb(error.__traceback__)[-1]
            _log.warning(
                "A check broke on a body: %s at %s:%s",
                type(error).__name__,
                where.filename,
                where.lineno,
            )
            field, message = misfit(self.field_info.annotation, value)
            where_in_body = (*named.get("loc", ()), *((field,) if field else ()))
            return None, [{"type": "value_error", "loc": where_in_body, "msg": message}]

    return checked


def misfit(kind: Any, body: Any) -> tuple[str, str]:
    """The first field of a body that is not of its type, and what to say of it.

    The field is empty where each is of its type, and only together they are not taken.

    Args:
        kind: what the body is read as: a pydantic model, or a union of such.
        body: parsed JSON.
    """
    if not isinstance(body, dict):
        return "", NO_OBJECT
    models = [m for m in (get_args(kind) if isinstance(kind, UnionType) else (kind,)) if _model(m)]
    for model in models:
        for name, field in model.model_fields.items():
            if name not in body:
                continue
            form: Any = (
                Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            )
            try:
                TypeAdapter(form).validate_python(body[name])
            except ValidationError as error:
                said = error.errors(include_url=False, include_input=False)[0]["msg"]
                return name, f"{name} is not of its type ({said}): correct it, or leave it out"
            except Exception:
                return name, f"{name} is not of its type: correct it, or leave it out"
    return "", CONTRADICTION


def _model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
