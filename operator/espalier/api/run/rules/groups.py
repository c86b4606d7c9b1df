"""Rules of the groups of a step."""

from __future__ import annotations

from espalier.api.meta import Rule

GROUPS: tuple[Rule, ...] = (
    (
        "!has(self.schedule) || !has(self.schedule.minibatches) || (has(self.groupsPerStep)"
        " ? self.groupsPerStep : 8) % self.schedule.minibatches == 0",
        "schedule.minibatches must divide groupsPerStep (8 if unset)",
        ".schedule",
    ),
    (
        "!has(self.groupFilter) || !has(self.groupFilter.minGroups)"
        " || self.groupFilter.minGroups <= (has(self.groupsPerStep)"
        " ? self.groupsPerStep : 8)",
        "groupFilter.minGroups must not be above groupsPerStep (8 if unset)",
        ".groupFilter",
    ),
    (
        "!has(self.groupFilter) || !has(self.groupFilter.zeroVariance)"
        " || self.groupFilter.zeroVariance != 'Resample' || !has(self.schedule)"
        " || !has(self.schedule.mode) || self.schedule.mode == 'Synchronous'",
        "groupFilter.zeroVariance Resample needs schedule.mode Synchronous: under the "
        "others later groups are under way already; choose Drop",
        ".groupFilter",
    ),
)
