"""The CustomResourceDefinitions of the four kinds: ``python -m espalier.api.crds crds/``."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from espalier.api.checkpoint import SPEC_RULES, CheckpointSpec, CheckpointStatus
from espalier.api.checkpointhead import CheckpointHeadSpec, CheckpointHeadStatus
from espalier.api.meta import DECIMAL_PATTERN, GROUP, VERSION, cel
from espalier.api.schema import VALIDATIONS, Schema, structural_schema, without_defaults
from espalier.api.trainablemodel import TrainableModelSpec, TrainableModelStatus
from espalier.api.trainingrun import TrainingRunSpec, TrainingRunStatus

CATEGORY = "espalier"
HEADER = (
    "# Generated from operator/espalier/api by `python -m espalier.api.crds crds/`: edit that.\n"
)
MODEL_FIELD = ".spec.modelRef.name"


@dataclass(frozen=True)
class Column:
    """A column of ``kubectl get``; ``wide`` ones appear with ``-o wide`` only."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False

    def wire(self) -> dict[str, Any]:
        """The form of additionalPrinterColumns."""
        wire: dict[str, Any] = {"name": self.name, "type": self.type, "jsonPath": self.path}
        return {**wire, "priority": 1} if self.wide else wire


@dataclass(frozen=True)
class Kind:
    """What a CustomResourceDefinition says beyond the types of its spec and status."""

    name: str
    short_name: str
    description: str
    spec: type[BaseModel]
    status: type[BaseModel]
    columns: tuple[Column, ...]
    name_rules: tuple[tuple[str, str], ...]
    spec_rules: tuple[dict[str, str], ...] = ()
    selectable: tuple[str, ...] = ()

    @property
    def plural(self) -> str:
        """The resource name in URLs and RBAC rules."""
        return f"{self.name.lower()}s"


def condition(type_: str, field: str) -> str:
    """The JSON path of a condition's field."""
    return f'.status.conditions[?(@.type=="{type_}")].{field}'


READY = Column("Ready", condition("Ready", "status"))
STATUS = Column("Status", condition("Ready", "reason"))
MESSAGE = Column("Message", condition("Ready", "message"), wide=True)
AGE = Column("Age", ".metadata.creationTimestamp", "date")
REWARD = Column("Reward", '.status.metrics[?(@.name=="reward/mean")].value')
MODEL = Column("Model", MODEL_FIELD, wide=True)
EPOCH = Column("Epoch", ".status.epoch", "integer")


def name_rules(
    kind: str, longest: int, first: str = "a-z0-9", why: str = ""
) -> tuple[tuple[str, str], ...]:
    """Root rules on metadata.name: names of pods, Services and labels are derived from it."""
    begins = "a lower-case letter" if first == "a-z" else "a lower-case letter or digit"
    return (
        (
            f"self.metadata.name.size() <= {longest}",
            f"metadata.name of a {kind} has at most {longest} characters{why}: shorten it",
        ),
        (
            f"self.metadata.name.matches('^[{first}][-a-z0-9]*$')",
            f"metadata.name of a {kind} begins with {begins} and has only lower-case letters, "
            "digits and '-': rename it",
        ),
    )


KINDS = (
    Kind(
        name="TrainableModel",
        short_name="tmodel",
        description="TrainableModel is a fork of a base model, or of any checkpoint of another "
        "one. Its name is the slug under which it is sampled and trained.",
        spec=TrainableModelSpec,
        status=TrainableModelStatus,
        columns=(
            READY,
            STATUS,
            Column("Checkpoints", ".status.tree.checkpoints", "integer"),
            AGE,
            Column("Source", ".spec.source.*.*", wide=True),
            MESSAGE,
        ),
        name_rules=name_rules(
            "TrainableModel",
            40,
            first="a-z",
            why=", because its pods and checkpoints are named after it",
        ),
    ),
    Kind(
        name="TrainingRun",
        short_name="trun",
        description="TrainingRun is a bounded number of optimizer steps on a TrainableModel.",
        spec=TrainingRunSpec,
        status=TrainingRunStatus,
        columns=(
            READY,
            STATUS,
            Column("Step", ".status.step", "integer"),
            Column("Steps", ".spec.steps", "integer"),
            REWARD,
            AGE,
            MODEL,
            Column("LR", ".spec.learningRate", wide=True),
            Column("Loss", ".spec.loss.name", wide=True),
            Column("Epoch", ".status.epoch", "integer", wide=True),
            MESSAGE,
        ),
        name_rules=name_rules("TrainingRun", 50, why=", because its pod is named after it"),
        selectable=(MODEL_FIELD,),
    ),
    Kind(
        name="CheckpointHead",
        short_name="ckhead",
        description="CheckpointHead names the checkpoint that a model serves and that training "
        "continues from. Editing it rolls back.",
        spec=CheckpointHeadSpec,
        status=CheckpointHeadStatus,
        columns=(
            READY,
            STATUS,
            Column("Mode", ".spec.mode"),
            Column("Current", ".status.current.name"),
            Column("Latest", ".status.latest.name"),
            EPOCH,
            AGE,
            MESSAGE,
        ),
        name_rules=name_rules("CheckpointHead", 63),
        selectable=(MODEL_FIELD,),
    ),
    Kind(
        name="Checkpoint",
        short_name="ckpt",
        description="Checkpoint is one committed optimizer step, a node of a model's tree. The "
        "operator writes it; its spec never changes.",
        spec=CheckpointSpec,
        status=CheckpointStatus,
        columns=(
            Column("Step", ".spec.step", "integer"),
            Column("Parent", ".spec.parentRef.name"),
            Column("Branch", ".spec.branch"),
            REWARD,
            Column("Head", ".status.headMark"),
            READY,
            AGE,
            MODEL,
            Column("Run", ".spec.runRef.name", wide=True),
            Column("Epoch", ".spec.epoch", "integer", wide=True),
            Column("Digest", ".spec.digest", wide=True),
        ),
        name_rules=name_rules("Checkpoint", 63),
        spec_rules=tuple(SPEC_RULES[VALIDATIONS]),
        selectable=(MODEL_FIELD, ".spec.runRef.name", ".spec.branch"),
    ),
)


def definition(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [column.wire() for column in kind.columns],
    }
    if kind.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.selectable]
    version["schema"] = {"openAPIV3Schema": _root(kind)}
    names = {
        "kind": kind.name,
        "listKind": f"{kind.name}List",
        "plural": kind.plural,
        "singular": kind.name.lower(),
        "shortNames": [kind.short_name],
        "categories": [CATEGORY],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def _root(kind: Kind) -> Schema:
    spec = _described("spec", structural_schema(kind.spec))
    if kind.spec_rules:
        spec[VALIDATIONS] = [*spec.get(VALIDATIONS, []), *kind.spec_rules]
    # Only the operator writes status, so nothing in it is defaulted but this: kstatus (Flux,
    # kubectl) takes an object without observedGeneration for done before the operator saw it.
    status = without_defaults(_described("status", structural_schema(kind.status)))
    status["default"] = {"observedGeneration": -1}
    return {
        "description": kind.description,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "apiVersion of this object."},
            "kind": {"type": "string", "description": "kind of this object."},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
        **cel(*kind.name_rules),
    }


def _described(name: str, schema: Schema) -> Schema:
    """Makes the sentence of the class one about the field: ``The desired run`` is what spec is."""
    text = " ".join(schema["description"].split())
    return {**schema, "description": f"{name} is {text[0].lower()}{text[1:]}"}


class _Dumper(yaml.SafeDumper):
    """YAML that Go reads as it was meant, without aliases so that each schema reads on its own."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # PyYAML writes 1e-8 bare (YAML 1.1 wants a dot in a float); kubectl would read a number.
        style = "'" if re.match(DECIMAL_PATTERN, text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def rendered(kind: Kind) -> str:
    """The committed YAML of a kind."""
    return HEADER + yaml.dump(definition(kind), Dumper=_Dumper, sort_keys=False, width=100)


def main() -> None:
    """Writes one file a kind into the directory given."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m espalier.api.crds DIRECTORY")
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        (directory / f"{kind.plural}.yaml").write_text(rendered(kind))


if __name__ == "__main__":
    main()
