"""The command line: read the tree, watch a run, ask and evaluate a model."""
