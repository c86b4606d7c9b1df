"""Exit codes that a process of Espalier and whoever restarts it agree on."""

from __future__ import annotations

FAULT = 1
# Only the user can repair the cause: the operator reports it and does not start the pod again.
USER_MISTAKE = 64
# It ended because it was asked to (SIGTERM), which is no failure.
TERMINATED = 128 + 15
# A named wait took too long: the Job starts the pod again.
TRY_AGAIN = 75
