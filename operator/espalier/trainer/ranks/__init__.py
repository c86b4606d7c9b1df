"""One policy on several ranks: how they meet, share a call out, and add up the results."""
