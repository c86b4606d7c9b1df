"""What a runner's pod has beside the runner where a user's own image plays the tasks.

That image runs without any token, in a container that is started again when it ends, and shares
two directories with the runner: one with our host scripts, which it cannot write, and one with the
socket through which both speak. ``/tmp`` and shared memory are its own: what it would write there
the runner's Python might load.
"""

from __future__ import annotations

from espalier.api.run.environment_sources import UserImage
from espalier.core.manifests.pod import Container, Mount, Requests

SCRIPT_PATH = "/etc/espalier/host"
SOCKET_PATH = "/run/espalier/host"
SOCKET_VARIABLE = "ESPALIER_HOST_SOCKET"
_SOCKET = f"{SOCKET_PATH}/host.sock"

_REQUESTS = Requests("50m", "128Mi")


def socket_mount() -> Mount:
    """Where the socket is; a few bytes are all that belongs there."""
    return Mount("host-socket", {"emptyDir": {"sizeLimit": "1Mi"}}, SOCKET_PATH)


def runner_variables() -> dict[str, str]:
    """What the runner is told of its host."""
    return {SOCKET_VARIABLE: _SOCKET}


def host_containers(source: UserImage, runner_image: str) -> tuple[Container, ...]:
    """The copy of our script out of the runner's image, and the user's image that runs it."""
    script = Mount("host-script", {"emptyDir": {"sizeLimit": "16Mi"}}, SCRIPT_PATH)
    place = Container(
        name="place-host",
        image=runner_image,
        requests=_REQUESTS,
        env={},
        mounts=(script,),
        command=("python", "-m", "espalier.environments.place_host", SCRIPT_PATH),
    )
    plays = Container(
        name="environment",
        image=source.image,
        requests=_REQUESTS,
        # Its tasks must be the same after a restart.
        env={"PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"},
        mounts=(
            Mount("host-script", {"emptyDir": {"sizeLimit": "16Mi"}}, SCRIPT_PATH, read_only=True),
            socket_mount(),
        ),
        command=("python3", f"{SCRIPT_PATH}/host.py", _SOCKET),
        resources=source.resources,
        apart=True,
        stays=True,
    )
    return place, plays
