"""What fits into memory: the cost of a row, and how a batch is cut into rows."""
