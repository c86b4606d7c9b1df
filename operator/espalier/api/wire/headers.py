"""The headers of the protocol.

Idempotency-Key: ``<session>/<seq>``; a command is applied once per key, and a resent key gets
    the first result. Same key with another body: 422. Without it a resend is recognised by
    what was delivered: the gateway sends Espalier-Client, the trainer answers with the key that
    it gave the command, and the gateway posts that key to ``/train/delivered`` once the client
    has the answer.
Espalier-Term: the term of the head that the caller trains under; another live term: 409.
Espalier-Caller: from the gateway to a sampler: whose completion it is, told by a digest. Callers
    take turns in the sampler's queue.
Espalier-Checkpoint: on the gateway's answer to a completion: the name of the Checkpoint that
    sampled it, or base.
Espalier-Checkpoint-Digest: on the trainer's answer to optim-step: digest of the checkpoint.
Espalier-Declared: from the gateway, what the run in Git binds the command to (Declared).
Espalier-Promotion: on the gateway's answer to optim-step: Served, Pinned, Gated or Timeout.
"""

from __future__ import annotations

IDEMPOTENCY_KEY = "Idempotency-Key"
TERM = "Espalier-Term"
PROMOTION = "Espalier-Promotion"
# Of an optim-step's answer: seconds that it waited until the promotion was decided.
PROMOTED_AFTER = "Espalier-Promotion-Seconds"
CLIENT = "Espalier-Client"
CALLER = "Espalier-Caller"
CHECKPOINT = "Espalier-Checkpoint"
CHECKPOINT_DIGEST = "Espalier-Checkpoint-Digest"
DECLARED = "Espalier-Declared"
