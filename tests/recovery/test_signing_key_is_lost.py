"""The Secrets of the signing keys are deleted: new ones are made, and no pod starts anew for them.

On the real API server that Secret and ConfigMap come to say the same again; on the site that a run
lives through the time in which its pods do not know the new keys yet.
"""

from __future__ import annotations

import asyncio

from dev.apiserver import ApiServer
from tests.recovery.site import MODEL, Site
from tests.security.test_rotation import AUDIENCE, Clock, believed, own_and_served

from espalier import identity
from espalier.controllers.process.signing_key import SigningKeys
from espalier.identity import GATEWAY_KEY_SECRET, OPERATOR_KEY_SECRET
from espalier.kube.apiserver import KubernetesCluster

DAY = 86_400.0


async def test_deleted_keys_are_made_anew_and_shown_to_pods_at_the_next_turn(
    apiserver: ApiServer, cluster: KubernetesCluster
) -> None:
    system, team = own_and_served(apiserver, "lost")
    keys = SigningKeys(cluster, system, (team,), 90 * DAY, Clock())
    await keys.turn()
    lost = keys.signer.private_key
    secrets = (OPERATOR_KEY_SECRET, GATEWAY_KEY_SECRET)
    before = await believed(cluster, team)
    apiserver.kubectl("delete", "secret", "-n", system, *secrets)
    await keys.turn()
    assert keys.signer.private_key != lost
    shown = await believed(cluster, team)
    token = identity.issue(keys.signer.private_key, "operator", AUDIENCE)
    assert identity.verify(shown, f"Bearer {token}", AUDIENCE).subject == "operator"
    # Whoever has the lost key is nobody.
    assert not {*before.operator, *before.gateway} & {*shown.operator, *shown.gateway}


async def test_a_run_lives_through_the_time_in_which_its_pods_do_not_know_the_new_keys(
    site: Site,
) -> None:
    stage, new = site.stage, identity.generate_private_key()
    pods = site.pods()
    stage.signer.private_key = new
    stage.tokens.use(new)
    step = asyncio.create_task(site.train(1))
    await site.restart_trainer()
    await asyncio.sleep(0.5)
    # The trainer has started anew and is not assigned: no call passes, and nobody gives up.
    assert not step.done()
    for kind in ("TrainingRun", "CheckpointHead"):
        assert site.condition(kind, MODEL, "Stalled")["status"] == "False"
    site.show("TrainingRun")
    stage.keys.keys = identity.PublicKeys.of(new, new)
    assert await step == ["arith-000004"]
    await site.serves("arith-000004")
    site.show("TrainingRun")
    assert site.optimizer_steps("arith-000004") == 4
    assert site.pods() == pods
