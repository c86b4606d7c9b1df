"""Which tests stay together on one worker, and in which order they are begun.

A worker that is free takes the group that is next, so long groups are begun first, and the workers
end at about the same time. Two of them keep two cores busy. A third begins with the groups that
wait most of their time: for pods, for controllers, for a Lease to run out.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

# Starts of the paths of tests that are one group. Elsewhere a file is a group.
TOGETHER = {
    # Two vLLM servers on two cores hinder each other more than they overlap: one worker has them.
    "vllm": (
        "gateway/test_vllm",
        "local/test_agents",
        "local/test_cookbooks",
        "local/test_dev",
        "local/test_full",
        "local/test_tinker",
        "local/test_try",
        "sampler/test_altered_adapters",
        "sampler/test_full_weights",
        "sampler/test_process",
        "sampler/test_requests",
        "sampler/test_server",
        "sampler/test_tools",
        "sampler/test_trained",
    ),
    # The files of these folders share what is started once for all of them.
    "compat": ("compat/",),
    "e2e": ("e2e/",),
    "gitops": ("gitops/",),
}
# Starts of groups' names. What none of them begins comes last.
ORDER = (
    "vllm",
    "trainer/test_ranks",
    "compat",
    "trainer/",
    "sampler/",
    "e2e",
    "gitops",
    "simulation/test_deletion_real",
    "simulation/test_takeover",
    "tinker/",
    "runner/",
    "simulation/",
)
# Groups of these names wait.
WAIT = ("e2e", "gitops", "simulation/test_deletion_real", "simulation/test_takeover")
WORKERS_THAT_COMPUTE, WAITING_WORKER = 2, "gw2"


def group(nodeid: str) -> str:
    """The name of the group of a test (``tests/core/test_head.py::test_a[b]``)."""
    file = nodeid.split("::", 1)[0].removeprefix("tests/").removesuffix(".py")
    return next((name for name, starts in TOGETHER.items() if file.startswith(starts)), file)


def turn(nodeid: str) -> int:
    """Where the group of a test stands in the order of beginning: the lowest first."""
    name = group(nodeid)
    return next((n for n, start in enumerate(ORDER) if name.startswith(start)), len(ORDER))


class Dealer(LoadScopeScheduling):
    """Deals out groups. ``--dist loadgroup`` does not: pytest 9 drops what it adds to test ids."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Gives a worker the next group of its kind, or of the other one if none is left."""
        if self.numnodes > WORKERS_THAT_COMPUTE:
            waits = node.gateway.id == WAITING_WORKER
            name = next((n for n in self.workqueue if (n in WAIT) is waits), None)
            if name is not None:
                self.workqueue.move_to_end(name, last=False)
        super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        """Gives work to a worker that has collected: in place of a dead one, not at first."""
        if node in self.registered_collections:
            super()._reschedule(node)
