"""The trainer protocol and the rollout control protocol, as JSON.

The train routes speak HUD's wire format (``/v1/models/{slug}/train/*``), so that its clients work
unmodified: their responses carry exactly HUD's fields, because those clients refuse any other.
What we add travels in optional request fields and in headers.
"""
