"""Pure decisions: no I/O, no clock, no kopf, no kubernetes, no torch."""
