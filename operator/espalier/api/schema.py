"""Structural schemas of Kubernetes (apiextensions.k8s.io/v1) from pydantic models.

The cleaner is an allow-list: a keyword that a structural schema cannot hold, or whose meaning
differs between JSON Schema 2020-12 and OpenAPI 3.0, raises SchemaError instead of passing through.
"""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from espalier.api.meta import DECIMAL_PATTERN, UNSET

Schema = dict[str, Any]

VALIDATIONS = "x-kubernetes-validations"
INT_OR_STRING = "x-kubernetes-int-or-string"
INT32_MAX = 2**31 - 1
_SAYS_DEFAULT = re.compile(r"\b(default|if unset|unless set)\b", re.IGNORECASE)

KEPT = {
    "type",
    "description",
    "default",
    "enum",
    "format",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "maxProperties",
    "required",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
    INT_OR_STRING,
    VALIDATIONS,
}
DROPPED = {"title", "examples"}


class SchemaError(Exception):
    """A model says something that a structural schema cannot."""


class _ObjectDefaults(GenerateJsonSchema):
    """Writes the whole default of fields whose default is a model.

    The API server fills in the defaults of a nested object only where the object is given, and
    checks CEL rules against an object's own default before it fills that in.
    """

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        generated = super().default_schema(schema)
        factory = schema.get("default_factory")
        if isinstance(factory, type) and issubclass(factory, BaseModel):
            value = factory().model_dump(mode="json", by_alias=True, exclude_none=True)
            generated = {**generated, "default": value}
        return generated


def structural_schema(model: type[BaseModel]) -> Schema:
    """The structural schema of a model, references inlined; raises SchemaError."""
    generated = model.model_json_schema(schema_generator=_ObjectDefaults)
    definitions = generated.pop("$defs", {})
    return _clean(generated, definitions, model.__name__)


def without_defaults(schema: Schema) -> Schema:
    """The same schema without any default, at any depth."""
    bare = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in bare:
        bare["properties"] = {k: without_defaults(v) for k, v in bare["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in bare:
            bare[key] = without_defaults(bare[key])
    return bare


def with_defaults_told(schema: Schema) -> Schema:
    """The same schema, at any depth: what is filled in where a field is left out is described too.

    ``kubectl explain`` shows descriptions and no defaults. An object says its fields' defaults.
    """
    told = dict(schema)
    if "properties" in told:
        told["properties"] = {k: with_defaults_told(v) for k, v in told["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in told:
            told[key] = with_defaults_told(told[key])
    text, default = told.get("description", ""), default_told(told)
    if default and not _SAYS_DEFAULT.search(text):
        told["description"] = f"{text} {default}".lstrip()
    return told


def default_told(node: Schema) -> str:
    """The sentence that says a field's default; empty where there is none, or nothing in it."""
    default = node.get("default")
    if default in (None, "", []) or isinstance(default, dict):
        return ""
    if isinstance(default, list):
        return f"Default: [{', '.join(map(_yaml, default))}]."
    return f"Default: {_yaml(default)}."


def _yaml(value: str | int) -> str:
    """As a manifest has it: a decimal string in quotes, and no word."""
    is_word = isinstance(value, str) and not re.match(DECIMAL_PATTERN, value)
    return str(value) if is_word else json.dumps(value)


def _clean(raw: Schema, definitions: Schema, path: str) -> Schema:
    node = _resolve(raw, definitions, path)
    if node.get(UNSET):
        node.pop("default", None)
    clean: Schema = {"description": node["description"]} if "description" in node else {}
    for key, value in node.items():
        if key == "properties":
            clean[key] = {k: _clean(v, definitions, f"{path}.{k}") for k, v in value.items()}
        elif key == "items":
            clean[key] = _clean(value, definitions, f"{path}[]")
        elif key == "additionalProperties":
            clean.update(_additional_properties(node, definitions, path))
        elif key == "const":
            clean["enum"] = [value]
        elif key in ("exclusiveMinimum", "exclusiveMaximum"):
            clean[key.replace("exclusiveM", "m")] = value
            clean[key] = True
        elif key in KEPT:
            clean[key] = value
        elif key not in DROPPED | {UNSET}:
            raise SchemaError(f"{path}: a structural schema has no {key!r}")
    _finish(clean, path)
    return clean


def _resolve(raw: Schema, definitions: Schema, path: str) -> Schema:
    """Inlines a reference and unwraps ``X | None``; what stands beside them wins."""
    node = dict(raw)
    while "$ref" in node or "anyOf" in node:
        if "$ref" in node:
            target = copy.deepcopy(definitions[node.pop("$ref").rpartition("/")[2]])
        else:
            members = [m for m in node.pop("anyOf") if m != {"type": "null"}]
            if len(members) != 1:
                raise SchemaError(f"{path}: a union is not structural: one optional field each")
            target = members[0]
            # Absence stands for None: an explicit null would be a difference to what Git holds.
            if node.get("default", ...) is None:
                del node["default"]
        validations = [*target.get(VALIDATIONS, []), *node.get(VALIDATIONS, [])]
        node = {**target, **node}
        if validations:
            node[VALIDATIONS] = validations
    return node


def _additional_properties(node: Schema, definitions: Schema, path: str) -> Schema:
    """A map's values. A closed object says nothing: the API server refuses or prunes the rest."""
    values = node["additionalProperties"]
    if values is False:
        return {}
    if values is True:
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            raise SchemaError(f"{path}: a map of anything must preserve unknown fields")
        return {}
    return {"additionalProperties": _clean(values, definitions, f"{path}{{}}")}


def _has_rule(node: Schema, beginning: str) -> bool:
    return any(entry["rule"].startswith(beginning) for entry in node.get(VALIDATIONS, []))


def _finish(node: Schema, path: str) -> None:
    if node.get(INT_OR_STRING):
        # The one union that the API server takes; beside it a pattern is not enforced.
        if not node.get(VALIDATIONS):
            raise SchemaError(f"{path}: an int or string needs a rule that bounds it")
        del node["type"], node["pattern"]
        node["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        return
    kind = node.get("type")
    if "pattern" in node and _has_rule(node, f"self.matches(r'{node['pattern']}')"):
        del node["pattern"]  # the rule says it with a remedy
    if kind is None:
        raise SchemaError(f"{path}: every node needs a type")
    if kind == "number":
        raise SchemaError(f"{path}: floats differ between encoders: use a decimal string")
    if kind == "integer":
        small = node.get("maximum", INT32_MAX + 1) <= INT32_MAX
        node.setdefault("format", "int32" if small else "int64")
    if kind == "object" and "maxProperties" not in node and "additionalProperties" in node:
        raise SchemaError(f"{path}: a map needs max_length")
