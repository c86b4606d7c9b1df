"""OpenAPI documents of gateway, trainer and sampler, made of their routes and of what they parse.

None is published: clients of three kinds bring their own, and the rest is described in prose. What
is read as a type of ours has that type's schema; a completion has vLLM's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from tests.security.hostile_requests import PLACEHOLDER

from espalier.api.console import HeadRequest
from espalier.api.platform import JobReport, TraceEnter, TraceExit
from espalier.api.wire.barren_rounds import BarrenRounds
from espalier.api.wire.evaluation import EvaluationRequest
from espalier.api.wire.gradients import BackwardRequest, ForwardBackwardRequest, ForwardRequest
from espalier.api.wire.rollout_control import ServeRequest
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trainer import Assignment
from espalier.api.wire.trajectory import TrajectorySample
from espalier.gateway.tinker import bodies as tinker
from espalier.tinker.bodies import OptimStep

Schema = dict[str, Any]
Routes = Sequence[tuple[str, str]]

TRAIN: dict[str, type[BaseModel]] = {
    "forward-backward": ForwardBackwardRequest,
    "forward": ForwardRequest,
    "backward": BackwardRequest,
    "optim-step": OptimStepRequest,
}
# By the end of the path. A body of another form, such as protobuf, or of none, is any object.
BODIES: dict[str, type[BaseModel]] = {
    **{f"/train/{command}": body for command, body in TRAIN.items()},
    "/assign": Assignment,
    "/traces/job/{id}/enter": JobReport,
    "/trace/job/{id}/enter": JobReport,
    "/{id}/enter": TraceEnter,
    "/{id}/exit": TraceExit,
    "/{id}/samples": TrajectorySample,
    "/tinker/optim-step": OptimStep,
    "/evaluations": EvaluationRequest,
    "/barren-rounds": BarrenRounds,
    "/console/api/v1/heads/{namespace}/{name}": HeadRequest,
    "/espalier/v1/serve": ServeRequest,
    "/create_session": tinker.CreateSession,
    "/session_heartbeat": tinker.OfSession,
    "/create_model": tinker.CreateModel,
    "/load_weights": tinker.LoadWeights,
    "/get_info": tinker.OfModel,
    "/save_weights": tinker.SaveWeights,
    "/save_weights_for_sampler": tinker.SaveWeights,
    "/create_sampling_session": tinker.CreateSamplingSession,
    "/asample": tinker.Sample,
    "/retrieve_future": tinker.RetrieveFuture,
    "/ttl": tinker.SetTtl,
    "/weights_info": tinker.OfPath,
}
QUERY = ("after", "wait", "limit", "offset")
COMPLETIONS = {"/chat/completions": "ChatCompletionRequest", "/completions": "CompletionRequest"}
SCHEMAS = "#/components/schemas/"


def document(
    routes: Routes, names: Mapping[str, Sequence[str]], of_vllm: Schema, model: str
) -> Schema:
    """An OpenAPI 3.1 document.

    Args:
        routes: method and path of each route.
        names: what stands for a placeholder and leads somewhere; others are any text.
        of_vllm: vLLM's own document.
        model: the name of the model that completions ask.
    """
    schemas: dict[str, Schema] = {}
    paths: dict[str, dict[str, Schema]] = {}
    for method, path in routes:
        operation: Schema = {"responses": {"200": {"description": "an answer"}}}
        operation["parameters"] = [
            *(_placeholder(name[1:-1], names) for name in dict.fromkeys(PLACEHOLDER.findall(path))),
            *({"name": name, "in": "query", "schema": {"type": "integer"}} for name in QUERY),
        ]
        if method in ("POST", "PUT"):
            content = {"application/json": {"schema": _body(path, schemas, of_vllm, model)}}
            operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "a part", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def body_of(path: str) -> type[BaseModel] | None:
    """The type of ours that the body of a route is read as; None where it is another."""
    return next((body for end, body in BODIES.items() if path.endswith(end)), None)


def _placeholder(name: str, names: Mapping[str, Sequence[str]]) -> Schema:
    schema: Schema = {"enum": [*names[name]]} if name in names else {"type": "string"}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _body(path: str, schemas: dict[str, Schema], of_vllm: Schema, model: str) -> Schema:
    """The schema of a body; those that it refers to are added to the schemas."""
    for end, name in COMPLETIONS.items():
        if path.endswith(end):
            if name not in schemas:
                schemas.update(of_vllm["components"]["schemas"])
                own = schemas[name]
                known = own["properties"] | {"model": {"enum": [model]}}
                schemas[name] = own | {"properties": known}
            return {"$ref": SCHEMAS + name}
    kind = body_of(path)
    if kind is None:
        return {"type": "object"}
    prefix = f"{kind.__module__}.{kind.__name__}"
    whole = kind.model_json_schema(ref_template=f"{SCHEMAS}{prefix}.{{model}}")
    for name, schema in whole.pop("$defs", {}).items():
        schemas[f"{prefix}.{name}"] = schema
    schemas[prefix] = whole
    return {"$ref": SCHEMAS + prefix}


def of_vllm() -> Schema:
    """vLLM's own document."""
    from vllm.entrypoints.launchers.app import build_app  # noqa: PLC0415
    from vllm.entrypoints.launchers.cli_args import make_arg_parser  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    found: Schema = build_app(arguments, ("generate",)).openapi()
    return found
