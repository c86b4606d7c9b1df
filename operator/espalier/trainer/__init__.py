"""The trainer: LoRA training of a base model as a service, with a log that survives crashes."""
