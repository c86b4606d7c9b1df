"""``python -m espalier.sampler``: the server of a rollout pod."""

import signal

from espalier.sampler import launcher

if __name__ == "__main__":
    # Before anything slow: as process 1 of a container, Python ignores SIGTERM without a handler.
    signal.signal(signal.SIGTERM, launcher.terminate)
    launcher.main()
