"""The Jobs of a model's volume."""

from __future__ import annotations

from pydantic import Field

from espalier.api.meta import Type
from espalier.api.podtemplate import PodTemplate


class JobsSpec(Type):
    """The Jobs that bring bytes to the model's volume and remove them."""

    template: PodTemplate | None = Field(
        default=None,
        description="template of the pods of the importer and the collector. The importer's Job is "
        "made once: delete it to have it started with another template.",
    )
