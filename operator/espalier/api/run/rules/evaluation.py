"""Rules of held-out tasks, which no run trains on."""

from __future__ import annotations

from espalier.api.meta import Rule

# Whether an evaluation e has its tasks from the generator that the run has its own from.
_SAME_GENERATOR = " || ".join(
    f"(has(e.taskset.{name}) && has(self.taskset.{name}))"
    for name in ("reasoningGym", "game2048", "calculator", "openEnv", "python", "verifiers")
)

EVALUATION: tuple[Rule, ...] = (
    (
        "!has(self.evaluation) || !has(self.taskset) || self.evaluation.all(e,"
        f" !({_SAME_GENERATOR}) || e.taskset.seed != self.taskset.seed)",
        "evaluation[].taskset.seed must differ from taskset.seed: a run would be judged by "
        "the tasks that it trains on",
        ".evaluation",
    ),
    (
        "!has(self.evaluation) || self.evaluation.all(e,"
        " (!has(e.taskset.configMap) || (has(self.taskset) && has(self.taskset.configMap)"
        " && e.taskset.configMap.name == self.taskset.configMap.name))"
        " && (!has(e.taskset.persistentVolumeClaim) || (has(self.taskset)"
        " && has(self.taskset.persistentVolumeClaim)"
        " && e.taskset.persistentVolumeClaim.claimName"
        " == self.taskset.persistentVolumeClaim.claimName))"
        " && (!has(e.taskset.image) || (has(self.taskset) && has(self.taskset.image)"
        " && e.taskset.image.reference == self.taskset.image.reference)))",
        "evaluation[].taskset names another ConfigMap, claim or image than taskset, which "
        "alone is mounted: put the held-out tasks beside the run's",
        ".evaluation",
    ),
)
