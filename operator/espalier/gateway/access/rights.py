"""Rights that more than one route asks for, as verb and resource of our API group."""

from __future__ import annotations

SEE = ("get", "trainablemodels")
# Of the run that a client drives.
TRAIN = ("update", "trainingruns")
# No subresource of the API server: a right of its own, because sampling takes the time of GPUs.
SAMPLE = ("create", "trainablemodels/sample")
# The chart makes it.
SAMPLER_ROLE = "espalier-sampler"
