"""Pure functions of tokens: datums, packed rows, losses, metrics."""
