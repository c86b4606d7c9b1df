"""Which namespaces are served, and which never is: the one that holds the signing key."""

from __future__ import annotations

VARIABLE = "ESPALIER_NAMESPACES"


def served(listed: str, own: str) -> tuple[str, ...]:
    """The namespaces of a comma-separated list, in its order; ValueError says what to set.

    Whoever may read Secrets or create pods in the namespace of operator and gateway can act as
    both, and users of a served namespace often may: so the two are never the same.
    """
    found = tuple(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))
    if not found:
        raise ValueError("names no namespace: list those to serve, separated by commas")
    if own in found:
        raise ValueError(
            f"names {own}, where Espalier itself runs: whoever may read Secrets there "
            "holds its signing key. Run it in a namespace of its own, such as espalier-system"
        )
    return found
