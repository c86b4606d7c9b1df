"""The engine: every command is applied exactly once, also after a crash."""
