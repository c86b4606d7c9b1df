"""The runner: drives one TrainingRun through the gateway."""
