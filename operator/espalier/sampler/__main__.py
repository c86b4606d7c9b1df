"""``python -m espalier.sampler``: the server of a rollout pod."""

from espalier.termination import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()

import signal

from espalier.sampler import launcher

if __name__ == "__main__":
    # Before vLLM is imported, which starts processes of its own.
    signal.signal(signal.SIGTERM, launcher.terminate)
    launcher.main()
