"""The parts of a TrainingRun's spec, one file per field."""
