"""One policy on several ranks: every rank holds the weights, and rank 0 holds everything else."""
