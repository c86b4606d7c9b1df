"""Types of the four kinds and of the wire, and the generator of their CRDs."""
