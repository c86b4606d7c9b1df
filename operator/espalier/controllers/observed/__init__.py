"""What reconcilers observe, and the status that they write."""
