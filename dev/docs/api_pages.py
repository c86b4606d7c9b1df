"""The pages of the API: every field of the four kinds, from the CRDs.

The CRDs hold one description for each field, so the pages say what ``kubectl explain`` says. The
template of a pod occurs in four places; it has a page of its own, and the others lead to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dev.docs.markdown import code, page, table

from espalier.api.crds import KINDS, Kind, definition
from espalier.api.schema import default_told

Schema = dict[str, Any]
RULES = "x-kubernetes-validations"
TEMPLATE = "template"
TEMPLATE_PAGE = "pod-template.md"
# Kubernetes' own types: their fields are described in its documentation.
OF_KUBERNETES = {"affinity", "tolerations", "topologySpreadConstraints"}
HEAD = ("field", "type", "default", "what it is")
MOST_NAMES = 8


def pages() -> dict[str, str]:
    """The pages by file name."""
    return {
        **{f"{kind.name.lower()}.md": _kind(kind) for kind in KINDS},
        TEMPLATE_PAGE: _template(),
    }


def _schema(kind: Kind) -> Schema:
    schema: Schema = definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def _kind(kind: Kind) -> str:
    schema = _schema(kind)
    properties = schema["properties"]
    columns = [
        (code(c.name.upper()), code(c.path), "with `-o wide`" if c.wide else "")
        for c in kind.columns
    ]
    return page(
        kind.name,
        "operator/espalier/api",
        kind.description,
        f"`kubectl get {kind.short_name}` lists them. `kubectl explain {kind.name.lower()}.spec` "
        "prints the descriptions of this page. A field that is not marked *required* is optional.",
        _rules(schema),
        *_objects("spec", properties["spec"]),
        *_objects("status", properties["status"], "The operator writes it, nobody else."),
        "## Columns of `kubectl get`",
        table(("column", "from", "shown"), columns),
    )


def _objects(path: str, schema: Schema, note: str = "") -> Iterator[str]:
    """A section for each object: its own description, its fields, its rules."""
    level = "##" if "." not in path else "###"
    yield f"{level} {path}"
    yield "\n\n".join(filter(None, (_sentence(path, schema), note)))
    properties = schema.get("properties", {})
    yield table(HEAD, [_row(name, inner, schema) for name, inner in properties.items()])
    yield _rules(schema)
    for name, inner in properties.items():
        nested = inner.get("items", inner)
        if nested.get("properties") and name != TEMPLATE and name not in OF_KUBERNETES:
            yield from _objects(f"{path}.{name}" + ("[]" if "items" in inner else ""), nested)


def _row(name: str, schema: Schema, parent: Schema) -> tuple[str, str, str, str]:
    required = name in parent.get("required", [])
    default = schema.get("default")
    shown = "*required*" if required else code(str(default)) if _is_plain(default) else ""
    return code(name), _type(name, schema), shown, _meaning(name, schema)


def _is_plain(default: object) -> bool:
    return isinstance(default, (str, int)) and default != ""


def _type(name: str, schema: Schema) -> str:
    if name == TEMPLATE:
        return f"[pod template]({TEMPLATE_PAGE})"
    if name in OF_KUBERNETES:
        return "as in a Pod"
    if "items" in schema:
        return f"list of {_type_of_value(schema['items'])}"
    return _type_of_value(schema)


def _type_of_value(schema: Schema) -> str:
    if "additionalProperties" in schema:
        return "map"
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "enum" in schema:
        return _choice(schema["enum"])
    return str(schema.get("type", "any")) + _range(schema)


def _choice(names: list[str]) -> str:
    if len(names) > MOST_NAMES:
        return f"{code(names[0])}, {code(names[1])} or one of {len(names) - 2} names"
    return ", ".join(map(code, names))


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return ""
    if high is None:
        return f", at least {low}"
    return f", at most {high}" if low is None else f", {low} to {high}"


def _meaning(name: str, schema: Schema) -> str:
    inner = schema.get("items", schema)
    text = _sentence(name, schema)
    if _is_plain(schema.get("default")):
        # It has a column.
        text = text.removesuffix(default_told(schema)).rstrip()
    leaf = not inner.get("properties")
    said = [f"It {rule['message']}." for rule in inner.get(RULES, ()) if leaf and _of_one(rule)]
    return " ".join([text, *said])


def _of_one(rule: Schema) -> bool:
    """Whether the message speaks of this field alone, and so reads on after ``It``."""
    return bool(str(rule["message"]).startswith(("must ", "has at most ", "begins ")))


def _sentence(path: str, schema: Schema) -> str:
    """The description, in which the field's name comes first, as code."""
    text = " ".join(str(schema.get("description", "")).split())
    name = path.rpartition(".")[2].removesuffix("[]")
    return f"{code(name)}{text[len(name) :]}" if text.startswith(name) and name else text


def _rules(schema: Schema) -> str:
    rules = [" ".join(str(rule["message"]).split()) for rule in schema.get(RULES, ())]
    if not rules:
        return ""
    return "Refused when it is applied, with these words:\n\n" + "\n".join(f"- {r}" for r in rules)


def _template() -> str:
    model = _schema(KINDS[0])["properties"]["spec"]["properties"]
    template = model["trainer"]["properties"][TEMPLATE]
    return page(
        "Template of a pod",
        "operator/espalier/api/podtemplate.py",
        "A TrainableModel has three of these, `spec.trainer.template`, `spec.rollout.template` and "
        "`spec.jobs.template`; a TrainingRun has one, `spec.runner.template`. How to use them, and "
        "what is refused: [pod templates](../../guides/pod-templates.md).",
        *_objects(TEMPLATE, template),
    )
