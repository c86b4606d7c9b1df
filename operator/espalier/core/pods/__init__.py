"""What Kubernetes says of the pods and Jobs that do the work."""
