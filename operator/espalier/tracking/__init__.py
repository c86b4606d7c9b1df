"""Where a run reports its metrics: files, the console, and trackers of others."""

from espalier.tracking.trackers import Console, JsonLines, Tracker, track

__all__ = ["Console", "JsonLines", "Tracker", "track"]
