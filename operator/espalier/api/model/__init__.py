"""The parts of a TrainableModel's spec and status, one file per field."""
