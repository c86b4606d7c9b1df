"""Entry points of Jobs: import, export, collection and adoption of checkpoints and bases."""
