"""What a runner's pod has beside the runner where users' own images play tasks.

Such an image runs without any token, in a container that is started again when it ends, and shares
two directories with the runner: one with our host scripts, which it cannot write, and one with the
socket through which both speak, which no other image sees. ``/tmp`` and shared memory are its own:
what it would write there the runner's Python might load.
"""

from __future__ import annotations

from collections.abc import Mapping

from espalier.api.run.environment_sources import UserImage
from espalier.api.trainingrun import TrainingRunSpec
from espalier.core.manifests.pod import Container, Mount, Requests

SCRIPT_PATH = "/etc/espalier/host"
SOCKET_PATH = "/run/espalier/host"
SOCKET_VARIABLE = "ESPALIER_HOST_SOCKET"
_SOCKET = "host.sock"

_REQUESTS = Requests("50m", "128Mi")


def user_images(spec: TrainingRunSpec) -> dict[str, UserImage]:
    """The images that play tasks: of the run's own under an empty name, and of each evaluation."""
    tasksets = {"": spec.taskset} | {one.name: one.taskset for one in spec.evaluation}
    images = {name: taskset.user_image for name, taskset in tasksets.items() if taskset}
    return {name: image for name, image in images.items() if image is not None}


def host_name(name: str) -> str:
    """The container that plays the run's own tasks, or those of an evaluation of that name."""
    return _named("environment", name)


def socket_mount(name: str) -> Mount:
    """Where the socket of a host is; a few bytes are all that belongs there."""
    empty = {"emptyDir": {"sizeLimit": "1Mi"}}
    return Mount(_named("host-socket", name), empty, _named(SOCKET_PATH, name))


def runner_variables() -> dict[str, str]:
    """What the runner is told of its host; those of evaluations are beside it."""
    return {SOCKET_VARIABLE: f"{SOCKET_PATH}/{_SOCKET}"}


def host_containers(images: Mapping[str, UserImage], runner_image: str) -> tuple[Container, ...]:
    """The copy of our script out of the runner's image, and the users' images that run it."""
    if not images:
        return ()
    script = Mount("host-script", {"emptyDir": {"sizeLimit": "16Mi"}}, SCRIPT_PATH)
    place = Container(
        name="place-host",
        image=runner_image,
        requests=_REQUESTS,
        env={},
        mounts=(script,),
        command=("python", "-m", "espalier.environments.place_host", SCRIPT_PATH),
    )
    return place, *(_host(name, source) for name, source in images.items())


def _host(name: str, source: UserImage) -> Container:
    socket = socket_mount(name)
    return Container(
        name=host_name(name),
        image=source.image,
        requests=_REQUESTS,
        # Its tasks must be the same after a restart.
        env={"PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"},
        mounts=(
            Mount("host-script", {"emptyDir": {"sizeLimit": "16Mi"}}, SCRIPT_PATH, read_only=True),
            socket,
        ),
        command=("python3", f"{SCRIPT_PATH}/host.py", f"{socket.path}/{_SOCKET}"),
        resources=source.resources,
        apart=True,
        stays=True,
    )


def _named(what: str, name: str) -> str:
    return f"{what}-{name}" if name else what
