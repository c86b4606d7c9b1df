"""The cleaner lets only structural schemas through."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from espalier.api.meta import Type, cel, explained
from espalier.api.schema import VALIDATIONS, SchemaError, structural_schema


class Leaf(Type):
    size: int = 1


def schema_of(annotation: Any, field: Any = ...) -> dict[str, Any]:
    model = type("Model", (BaseModel,), {"__annotations__": {"x": annotation}, "x": field})
    cleaned: dict[str, Any] = structural_schema(model)["properties"]["x"]
    return cleaned


@pytest.mark.parametrize(
    "annotation",
    [
        pytest.param(int | str, id="union"),
        pytest.param(float, id="float"),
        pytest.param(tuple[int, int], id="tuple"),
        pytest.param(set[int], id="set"),
        pytest.param(Any, id="anything"),
        pytest.param(dict[str, str], id="unbounded map"),
        pytest.param(dict[str, Any], id="open map that prunes"),
    ],
)
def test_what_a_structural_schema_cannot_say_is_refused(annotation: Any) -> None:
    with pytest.raises(SchemaError, match=r"Model\.x"):
        schema_of(annotation)


def test_optional_means_absent_and_never_null() -> None:
    schema = schema_of(Leaf | None, None)
    assert schema["type"] == "object"
    assert not {"default", "nullable", "anyOf"} & schema.keys()


def test_closed_objects_leave_no_additional_properties() -> None:
    assert "additionalProperties" not in schema_of(Leaf)


def test_a_defaulted_object_carries_its_inner_defaults() -> None:
    assert schema_of(Leaf, Field(default_factory=Leaf))["default"] == {"size": 1}


def test_exclusive_bounds_take_the_form_of_openapi_3_0() -> None:
    schema = schema_of(int, Field(gt=0))
    assert (schema["minimum"], schema["exclusiveMinimum"]) == (0, True)


def test_a_single_literal_becomes_an_enum() -> None:
    assert schema_of(Literal["LoRA"])["enum"] == ["LoRA"]


def test_integers_have_a_width() -> None:
    assert schema_of(int)["format"] == "int64"
    assert schema_of(int, Field(le=100))["format"] == "int32"


def test_rules_of_a_field_and_of_its_type_add_up() -> None:
    class Ruled(Type):
        model_config = ConfigDict(json_schema_extra=cel(("has(self.size)", "of the type")))
        size: int = 1

    schema = schema_of(Ruled, Field(json_schema_extra=cel(("self == oldSelf", "of the field"))))
    assert [rule["message"] for rule in schema[VALIDATIONS]] == ["of the type", "of the field"]


def test_an_explained_pattern_is_left_to_its_rule() -> None:
    extra = explained("^a$", "must be a")
    schema = schema_of(str, Field(pattern="^a$", max_length=1, json_schema_extra=extra))
    assert "pattern" not in schema
    assert schema[VALIDATIONS] == [{"rule": "self.matches(r'^a$')", "message": "must be a"}]
