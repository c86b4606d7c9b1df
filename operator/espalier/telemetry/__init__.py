"""OpenTelemetry: spans of requests and of work, by the standard variables; off by default."""
