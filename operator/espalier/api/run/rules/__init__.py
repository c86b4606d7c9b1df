"""What the fields of a run's spec need of each other: CEL rules, one file per concern."""
