"""Entry points of Jobs beside the trainer: import, export, collection, adoption."""
