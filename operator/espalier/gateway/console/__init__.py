"""The console: a page for people who would rather look, and the JSON API that it reads."""
