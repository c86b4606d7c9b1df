"""Objects that are valid, that are not, and changes that are allowed or not."""

from __future__ import annotations

from itertools import cycle
from typing import Any

from tests.api.manifests import (
    ABSENT,
    CHECKPOINT,
    CLIENT_RUN,
    HEAD,
    MODEL,
    RUN,
    Manifest,
    edited,
    named,
)

TASKS = {"name": "tasks"}
GENERATED = {"seed": 1, "size": 8, "reasoningGym": {"dataset": "basic_arithmetic"}}
OTHERS = {**GENERATED, "seed": 2}
BUDGET = {"maxTrainedTokens": 1000}
PYTHON = {"image": "registry.example/game:1", "tasks": "game:tasks", "rollout": "game:rollout"}


def mixed(*weights: int) -> dict[str, Any]:
    """A mix of datasets with these weights."""
    names = ("chain_sum", "leg_counting")
    parts = zip(names, weights, strict=True)
    return {"datasets": [{"name": name, "weightPercent": weight} for name, weight in parts]}


# Everything that a user may set of a pod.
SELECTOR = {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "Exists"}]}
TERM = {"labelSelector": SELECTOR, "topologyKey": "kubernetes.io/hostname", "namespaces": ["x"]}
NODES = {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["h100"]}]}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
PODS = {REQUIRED: [TERM], PREFERRED: [{"weight": 1, "podAffinityTerm": TERM}]}
TEMPLATE: dict[str, Any] = {
    "labels": {"team": "blue"},
    "annotations": {"sidecar.istio.io/inject": "false"},
    "resources": {"requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"nvidia.com/gpu": "1"}},
    "env": [
        {"name": "NCCL_DEBUG", "value": "INFO"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "FROM", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
    ],
    "imagePullSecrets": [{"name": "team"}],
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "priorityClassName": "system-node-critical",
    "queueName": "gpus",
    "affinity": {
        "nodeAffinity": {
            REQUIRED: {"nodeSelectorTerms": [NODES]},
            PREFERRED: [{"weight": 1, "preference": NODES}],
        },
        "podAffinity": PODS,
        "podAntiAffinity": PODS,
    },
    "topologySpreadConstraints": [
        {
            **{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"},
            **{"labelSelector": SELECTOR, "minDomains": 2},
        }
    ],
    "runtimeClassName": "nvidia",
}

# The objects whose templates these are, and where.
PODS_OF = ((MODEL, "trainer"), (MODEL, "rollout"), (MODEL, "jobs"), (RUN, "runner"))
# What would make a pod more than its user: nobody sets it, however it is written.
FORBIDDEN: dict[str, Any] = {
    "serviceAccountName": "espalier-operator",
    "automountServiceAccountToken": True,
    "hostNetwork": True,
    "hostPID": True,
    "securityContext": {"runAsUser": 0},
    "volumes": [{"name": "host", "hostPath": {"path": "/"}}],
    "initContainers": [{"name": "x", "image": "x"}],
    "containers": [{"name": "x", "image": "x"}],
    "command": ["sh"],
}
REWARDS = [
    {"name": "right", "weight": "1.0", "onError": "Zero", "exact": {}},
    {"name": "near", "numeric": {"tolerance": "0.01"}},
    {"name": "boxed", "boxed": {}},
    {"name": "shouts", "weight": "-0.5", "regex": {"pattern": "!{3}", "group": 0}},
    {"name": "style", "python": {"configMapRef": {"name": "rewards"}, "maximum": "2"}},
    {"name": "tests", "http": {"serviceRef": {"name": "checker", "port": 8080, "path": "/run"}}},
    {
        "name": "kind",
        "timeoutSeconds": 60,
        "judge": {"modelRef": {"name": "judge"}, "rubric": "Is it kind?", "maximum": "10"},
    },
    {"name": "own", "environment": {}},
]
PENALTY = {"coefficient": "0.1", "reference": {"base": {}}}
CUSTOM = {"name": "Custom", "customRef": {"name": "losses"}}
OWN_LOSS = edited(RUN, "spec.loss", CUSTOM)

GOOD = {
    "run with a reward of each kind": edited(RUN, "spec.rewards", REWARDS),
    "run whose rewards are normalized on their own": edited(
        edited(RUN, "spec.rewards", REWARDS), "spec.rewardAggregation", "NormalizeThenSum"
    ),
    "run with bounds of errors and waits": edited(
        edited(RUN, "spec.rolloutErrors", {"maxRetries": 1, "maxErrors": 100, "minGroupSize": 4}),
        "spec.timeouts",
        {"sampleSeconds": 60, "groupSeconds": 600, "trainSeconds": 600, "stepSeconds": 3600},
    ),
    "run with limits of prompts": edited(
        RUN, "spec.limits", {"maxPromptTokens": 1024, "promptPolicy": "Fail"}
    ),
    "run with a seed and a tolerance": edited(
        edited(RUN, "spec.seed", 7), "spec.groupFilter", {"tolerance": "0.05"}
    ),
    "run whose checkpoints play games": edited(
        RUN, "spec.evaluation", [{"name": "e", "taskset": {"seed": 1, "game2048": {}}}]
    ),
    "run with a soft penalty": edited(
        edited(RUN, "spec.overlong", {"policy": "SoftPenalty", "bufferTokens": 64}),
        *("spec.lengthPenalty", {"coefficient": "0.1", "targetTokens": 128}),
    ),
    "model of an image": MODEL,
    "model of an adapter from outside": edited(
        MODEL, "spec.source.adapter", {"persistentVolumeClaim": {"claimName": "c", "path": "a"}}
    ),
    "model of a fork": edited(MODEL, "spec.source", {"checkpointRef": {"name": "a-000001"}}),
    "model of a claim": edited(
        MODEL, "spec.source.base", {"persistentVolumeClaim": {"claimName": "c", "path": "m/x"}}
    ),
    "model of the hub": edited(
        MODEL, "spec.source.base", {"huggingFace": {"repository": "Q/q-0.6B", "revision": "0" * 40}}
    ),
    "model with a placed trainer": edited(
        MODEL,
        "spec.trainer.template",
        {
            "resources": {"requests": {"cpu": 2, "memory": "1.5Gi"}, "limits": {"cpu": "2500m"}},
            "nodeSelector": {"accelerator": "h100"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "priorityClassName": "low",
        },
    ),
    **{
        f"a quantity of {text!r}": edited(
            MODEL, "spec.trainer.template.resources", {"limits": {"cpu": text}}
        )
        for text in ("0.5", ".5", "5.", "1e3", "1E3", "5e-1", "100n", "100u", "1k", "1Ei", "1E", 2)
    },
    "model with every field of a template": edited(MODEL, "spec.jobs.template", TEMPLATE),
    "run with every field of a template": edited(RUN, "spec.runner.template", TEMPLATE),
    "model whose requests are its limits in other words": edited(
        MODEL,
        "spec.trainer.template.resources",
        {"requests": {"memory": "1024Mi", "cpu": 1}, "limits": {"memory": "1Gi", "cpu": "1000m"}},
    ),
    "model of a private repository with a template": edited(
        MODEL,
        "spec.source.base",
        {
            "huggingFace": {
                **{"repository": "Q/q-0.6B", "revision": "0" * 40},
                "tokenSecretRef": {"name": "hub.token", "key": "HF_TOKEN"},
            },
            "chatTemplate": "{{ messages }}",
        },
    ),
    "model with the longest name": named(MODEL, "a" * 40),
    "model of which all is trained": edited(MODEL, "spec.adapter", {"type": "Full"}),
    "run of generated tasks": RUN,
    "run of a ConfigMap": edited(RUN, "spec.taskset", {"seed": 1, "configMap": TASKS}),
    "run of a claim": edited(
        RUN,
        "spec.taskset",
        {"seed": 1, "persistentVolumeClaim": {"claimName": "data", "path": "gsm8k/train.jsonl"}},
    ),
    "run of an image": edited(
        RUN,
        "spec.taskset",
        {"seed": 1, "image": {"reference": "registry.example/tasks:1", "path": "train.jsonl"}},
    ),
    "run with every choice of its objective": edited(
        edited(
            RUN,
            "spec.loss",
            {
                **{"name": "ppo", "aggregation": "Constant", "aggregationConstant": 64},
                **{"ratioAnchor": "Trainer", "entropyCoefficient": "1e-3"},
                **{"importanceLevel": "Sequence"},
            },
        ),
        "spec.offPolicyCorrection",
        {"mode": "SequenceTruncate", "maxRatio": "1.01"},
    ),
    "run that drops what is off-policy": edited(
        RUN, "spec.offPolicyCorrection", {"mode": "SequenceMask", "minRatio": "0.99"}
    ),
    "run that stays near a checkpoint": edited(
        RUN, "spec.kl", {"reference": {"checkpointRef": {"name": "tiny-000004"}}}
    ),
    "run of several steps a batch": edited(
        edited(RUN, "spec.batch", {"minibatches": 2, "epochs": 2}),
        *("spec.schedule", {"mode": "Asynchronous", "maxStalenessSteps": 3}),
    ),
    "run that stays near its base": edited(
        RUN, "spec.kl", {**PENALTY, "estimator": "K3", "discount": "1"}
    ),
    "run of single answers": edited(
        edited(RUN, "spec.advantage", {"estimator": "None", "scale": "BatchStd"}),
        *("spec.groupSize", 1),
    ),
    "run of inline tasks": edited(
        RUN,
        "spec.taskset",
        {
            "seed": 1,
            "inline": [
                {"id": "a", "prompt": "1+1=", "answer": "2"},
                {"id": "b", "messages": [{"role": "user", "content": "?"}], "answer": "2"},
            ],
        },
    ),
    "run of a mix": edited(RUN, "spec.taskset.reasoningGym", mixed(70, 30)),
    "run of 2048": edited(
        RUN, "spec.taskset", {"seed": 1, "game2048": {"invalidMoves": {"limit": 2}}}
    ),
    "run of a calculator": edited(
        RUN, "spec.taskset", {"seed": 1, "calculator": {"protocol": "ToolCall"}}
    ),
    "run of OpenEnv": edited(
        RUN,
        "spec.taskset",
        {
            "seed": 1,
            "openEnv": {
                "serviceRef": {"name": "snake", "port": 8000},
                "resetOptions": {"width": 8},
                "tools": [{"type": "function", "function": {"name": "move"}}],
            },
        },
    ),
    "run of verifiers": edited(
        RUN,
        "spec.taskset",
        {"seed": 1, "verifiers": {"image": "v:1", "id": "my_tasks", "config": {"a": 1}}},
    ),
    "run that a Python image evaluates": edited(
        RUN, "spec.evaluation", [{"name": "e", "taskset": {"seed": 9, "python": PYTHON}}]
    ),
    "run of a Python image": edited(RUN, "spec.taskset", {"seed": 1, "python": PYTHON}),
    "run of a client": edited(edited(RUN, "spec.driver", "Client"), "spec.taskset", ABSENT),
    "run that leaves all to its client": CLIENT_RUN,
    "run that binds its client": edited(
        edited(CLIENT_RUN, "spec.optimizer", {"weightDecay": "0.1"}), "spec.groupSize", 1
    ),
    "run with clipping": edited(
        RUN, "spec.loss", {"name": "ppo", "clipLow": "0.8", "clipHigh": "1.2"}
    ),
    "run of a loss of the user's": edited(
        edited(RUN, "spec.loss.customRef", {**CUSTOM["customRef"], "function": "ppo"}),
        *("spec.loss.name", "Custom"),
    ),
    "run of a loss of the user's that is given a reference": edited(
        OWN_LOSS, "spec.kl", {"reference": {"base": {}}}
    ),
    "run of a loss by sequence": edited(
        RUN, "spec.loss", {"name": "gspo", "clipLow": "0.9", "clipHigh": "1.1"}
    ),
    "run with a schedule": edited(
        RUN,
        "spec.learningRateSchedule",
        {"type": "Cosine", "warmupSteps": 19, "minimum": "1e-4"},
    ),
    "run with limits": edited(
        edited(RUN, "spec.budget", {"maxSampledTokens": 2**40, "maxGpuSeconds": 3600}),
        *("spec.activeDeadlineSeconds", 86400),
    ),
    "run that goes when it has ended": edited(RUN, "spec.ttlSecondsAfterFinished", 0),
    "run whose runner is never tried again": edited(RUN, "spec.runner", {"backoffLimit": 0}),
    "run with a warm-up alone": edited(RUN, "spec.learningRateSchedule", {"warmupSteps": 5}),
    "run with trackers": edited(
        RUN,
        "spec.tracking",
        {
            "project": "sums",
            "runName": "grpo, third try",
            "wandb": {
                **{"apiKeySecretRef": {"name": "wandb", "key": "api-key"}, "entity": "team"},
                "baseURL": "https://wandb.example",
            },
            "mlflow": {
                **{"trackingURI": "http://mlflow:5000"},
                "tokenSecretRef": {"name": "mlflow", "key": "token"},
            },
            "tensorBoard": {"claimName": "boards"},
            "trackio": {"claimName": "boards"},
        },
    ),
    "run with W&B offline": edited(RUN, "spec.tracking", {"wandb": {"mode": "Offline"}}),
    "run that keeps tokens": edited(
        RUN, "spec.rolloutLog", {"includeTokens": "Sampled", "redactPatterns": [r"[\w.]+@[\w.]+"]}
    ),
    "run held when log-probs differ": edited(
        CLIENT_RUN, "spec.logprobs", {"mismatchKLThreshold": "5e-3", "onMisaligned": "Pause"}
    ),
    "run with the longest name": named(RUN, "9" * 50),
    "head that tracks": HEAD,
    "head that tracks and still names a checkpoint": edited(
        HEAD, "spec.checkpointRef", {"name": "arith-000001"}
    ),
    "head that pins": edited(
        edited(HEAD, "spec.mode", "Pin"), "spec.checkpointRef", {"name": "arith-000001"}
    ),
    "gated head": edited(HEAD, "spec.gate", {"metric": "reward/mean", "min": "-0.5"}),
    "head gated by an evaluation": edited(
        HEAD, "spec.gate", {"metric": "eval/heldout/reward", "min": "0.42"}
    ),
    "checkpoint": CHECKPOINT,
    "checkpoint of a branch": edited(CHECKPOINT, "spec.branch", "b2"),
}

# name: (good object, field to spoil, bad value, field that the message names, remedy in it)
BAD: dict[str, tuple[Manifest, str, Any, str, str]] = {
    "run of 2048 with rewards": (
        edited(RUN, "spec.taskset", {"seed": 1, "game2048": {}}),
        *("spec.rewards", [{"name": "own", "environment": {}}]),
        *("spec.rewards", "remove rewards"),
    ),
    "run of 2048 with a penalty of length": (
        edited(RUN, "spec.taskset", {"seed": 1, "game2048": {}}),
        *("spec.lengthPenalty", {"coefficient": "1", "targetTokens": 8}),
        *("spec.lengthPenalty", "measure one completion"),
    ),
    "evaluation by the tasks of training, of a user's image": (
        edited(RUN, "spec.taskset", {"seed": 9, "python": PYTHON}),
        *("spec.evaluation", [{"name": "e", "taskset": {"seed": 9, "python": PYTHON}}]),
        *("spec.evaluation", "must differ from taskset.seed"),
    ),
    "evaluation by the games of training": (
        edited(RUN, "spec.taskset", {"seed": 1, "game2048": {}}),
        *("spec.evaluation", [{"name": "e", "taskset": {"seed": 1, "game2048": {}}}]),
        *("spec.evaluation", "must differ from taskset.seed"),
    ),
    "rewards that differ by less than counts": (
        *(RUN, "spec.groupFilter", {"tolerance": "1e-7"}),
        *("spec.groupFilter.tolerance", 'must be a quoted decimal of "1e-6" or more'),
    ),
    "errors of a client's rollouts": (
        *(CLIENT_RUN, "spec.rolloutErrors", {}),
        *("spec.rolloutErrors", "rolloutErrors belongs to driver Runner"),
    ),
    "a least group larger than a group": (
        *(RUN, "spec.rolloutErrors", {"minGroupSize": 9}),
        *("spec.rolloutErrors", "must not be above groupSize, which is 8 if unset"),
    ),
    "a part of a group whose rewards are normalized whole": (
        edited(edited(RUN, "spec.rewards", REWARDS), "spec.rewardAggregation", "NormalizeThenSum"),
        *("spec.rolloutErrors", {"minGroupSize": 2}),
        *("spec.rolloutErrors", "compares whole groups"),
    ),
    "seed of a client's samples": (
        *(CLIENT_RUN, "spec.seed", 1),
        *("spec.seed", "seed belongs to driver Runner"),
    ),
    "a request longer than its group": (
        *(RUN, "spec.timeouts", {"sampleSeconds": 60, "groupSeconds": 30}),
        *("spec.timeouts.sampleSeconds", "must not be above groupSeconds"),
    ),
    "a group longer than its step": (
        *(RUN, "spec.timeouts", {"groupSeconds": 60, "stepSeconds": 30}),
        *("spec.timeouts.groupSeconds", "must not be above stepSeconds"),
    ),
    "a command longer than its step": (
        *(RUN, "spec.timeouts", {"trainSeconds": 60, "stepSeconds": 30}),
        *("spec.timeouts.trainSeconds", "must not be above stepSeconds"),
    ),
    "a wait beyond the gateway's": (
        *(RUN, "spec.timeouts", {"sampleSeconds": 601}),
        *("spec.timeouts.sampleSeconds", "less than or equal to 600"),
    ),
    "model without source": (MODEL, "spec.source", {}, "spec.source", "exactly one of base and"),
    "model with two sources": (
        *(MODEL, "spec.source.checkpointRef", {"name": "x"}),
        *("spec.source", "set exactly one of base and checkpointRef"),
    ),
    "adapter without its base": (
        edited(MODEL, "spec.source", {"checkpointRef": {"name": "a-000001"}}),
        *("spec.source.adapter", {"image": "registry.example/lora:1"}),
        *("spec.source.adapter", "name the base that the adapter was trained on"),
    ),
    "adapter with two origins": (
        *(MODEL, "spec.source.adapter"),
        {"image": "registry.example/lora:1", "persistentVolumeClaim": {"claimName": "c"}},
        *("spec.source.adapter", "exactly one of huggingFace, image and persistentVolumeClaim"),
    ),
    "fork that keeps half of its optimizer": (
        edited(MODEL, "spec.source", {"checkpointRef": {"name": "a-000001"}}),
        *("spec.source.checkpointRef.optimizerState", "Half"),
        *("spec.source.checkpointRef.optimizerState", "Keep"),
    ),
    "base without origin": (
        *(MODEL, "spec.source.base", {}),
        *("spec.source.base", "exactly one of huggingFace, image and persistentVolumeClaim"),
    ),
    "base with two origins": (
        *(MODEL, "spec.source.base.persistentVolumeClaim", {"claimName": "c"}),
        *("spec.source.base", "exactly one of huggingFace, image and persistentVolumeClaim"),
    ),
    "base of a branch": (
        *(MODEL, "spec.source.base", {"huggingFace": {"repository": "a/b", "revision": "main"}}),
        *("huggingFace.revision", "full commit hash of 40 hex digits"),
    ),
    "repository without owner": (
        *(MODEL, "spec.source.base", {"huggingFace": {"repository": "b", "revision": "0" * 40}}),
        *("huggingFace.repository", "owner/name"),
    ),
    "image with a space": (
        *(MODEL, "spec.source.base", {"image": "a b"}),
        *("spec.source.base.image", "without white space"),
    ),
    "path that climbs": (
        *(MODEL, "spec.source.base"),
        {"persistentVolumeClaim": {"claimName": "c", "path": "../secrets"}},
        *("persistentVolumeClaim.path", "relative path inside the claim"),
    ),
    "absolute path": (
        *(MODEL, "spec.source.base", {"persistentVolumeClaim": {"claimName": "c", "path": "/x"}}),
        *("persistentVolumeClaim.path", "relative path inside the claim"),
    ),
    "claim that is no name": (
        *(MODEL, "spec.storage.persistentVolumeClaim.claimName", "Not_A_Name"),
        *("claimName", "must be the name of an object"),
    ),
    "adapter with a chat template": (
        *(MODEL, "spec.source.adapter", {"image": "registry.example/l:1", "chatTemplate": "x"}),
        *("spec.source.adapter.chatTemplate", "chatTemplate belongs to base"),
    ),
    "memory above its limit": (
        *(MODEL, "spec.trainer.template.resources"),
        {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}},
        *("spec.trainer.template.resources.requests", "raise the limit or lower"),
    ),
    "cores above their limit": (
        *(RUN, "spec.runner.template.resources"),
        {"requests": {"cpu": 1}, "limits": {"cpu": "999m"}},
        *("spec.runner.template.resources.requests", "raise the limit or lower"),
    ),
    "a variable of ours": (
        *(MODEL, "spec.jobs.template.env", [{"name": "ESPALIER_VOLUME", "value": "/"}]),
        *("spec.jobs.template.env[0].name", "Espalier does not set itself"),
    ),
    "a variable that a launcher sets": (
        *(MODEL, "spec.rollout.template.env", [{"name": "VLLM_PLUGINS", "value": "x"}]),
        *("spec.rollout.template.env[0].name", "Espalier does not set itself"),
    ),
    "a variable with two values": (
        *(MODEL, "spec.trainer.template.env"),
        [{"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        *("spec.trainer.template.env[0]", "exactly one of value and valueFrom"),
    ),
    "a label that pods are found by": (
        *(MODEL, "spec.trainer.template.labels", {"espalier.dev/role": "rollout"}),
        *("spec.trainer.template.labels", "Espalier's own"),
    ),
    "an annotation that loosens a profile": (
        *(MODEL, "spec.trainer.template.annotations"),
        {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"},
        *("spec.trainer.template.annotations", "Espalier's own"),
    ),
    "a runner of a client": (
        edited(edited(RUN, "spec.driver", "Client"), "spec.taskset", ABSENT),
        *("spec.runner", {"template": {}}, "spec.runner", "runner belongs to driver Runner"),
    ),
    "run of the runner without a loss": (
        *(RUN, "spec.loss", ABSENT, "spec.loss", "driver Runner needs loss"),
    ),
    "groups of a client's step": (
        *(CLIENT_RUN, "spec.groupsPerStep", 4),
        *("spec.groupsPerStep", "groupsPerStep belongs to driver Runner"),
    ),
    "minibatches of no stream": (
        *(RUN, "spec.schedule", {"mode": "Asynchronous", "maxStalenessSteps": 1, "minibatches": 2}),
        *("spec.schedule", "minibatches belongs to mode Streaming"),
    ),
    "a stream of one": (
        *(RUN, "spec.schedule", {"mode": "Streaming"}),
        *("spec.schedule", "minibatches belongs to mode Streaming, which needs it"),
    ),
    "staleness of no asynchronous run": (
        *(RUN, "spec.schedule", {"maxStalenessSteps": 1}),
        *("spec.schedule", "maxStalenessSteps belongs to mode Asynchronous"),
    ),
    "minibatches that do not divide a step": (
        *(edited(RUN, "spec.groupsPerStep", 8), "spec.schedule"),
        {"mode": "Streaming", "minibatches": 3},
        *("spec.schedule", "must divide groupsPerStep"),
    ),
    "a client's schedule": (
        *(CLIENT_RUN, "spec.schedule", {"mode": "Synchronous"}),
        *("spec.schedule", "schedule belongs to driver Runner"),
    ),
    "resampling of what is under way": (
        edited(RUN, "spec.schedule", {"mode": "Asynchronous", "maxStalenessSteps": 1}),
        *("spec.groupFilter", {"zeroVariance": "Resample"}),
        *("spec.groupFilter", "Resample needs schedule.mode Synchronous"),
    ),
    "a batch's deviation before the batch is there": (
        edited(RUN, "spec.schedule", {"mode": "Streaming", "minibatches": 2}),
        *("spec.advantage", {"scale": "BatchStd"}),
        *("spec.advantage", "needs all rewards of a step at once"),
    ),
    "rounds of no resampling": (
        *(RUN, "spec.groupFilter", {"maxResampleRounds": 2}),
        *("spec.groupFilter", "maxResampleRounds belongs to zeroVariance Resample"),
    ),
    "more groups than a step has": (
        *(RUN, "spec.groupFilter", {"minGroups": 4096}),
        *("spec.groupFilter", "minGroups must not be above groupsPerStep"),
    ),
    "an evaluation by the tasks of training": (
        edited(RUN, "spec.taskset", GENERATED),
        *("spec.evaluation", [{"name": "same", "taskset": GENERATED}]),
        *("spec.evaluation", "must differ from taskset.seed"),
    ),
    "an evaluation of another file": (
        edited(RUN, "spec.taskset", GENERATED),
        *("spec.evaluation", [{"name": "o", "taskset": {"seed": 2, "configMap": {"name": "o"}}}]),
        *("spec.evaluation", "which alone is mounted"),
    ),
    "an evaluation at no time": (
        edited(RUN, "spec.taskset", GENERATED),
        *("spec.evaluation", [{"name": "o", "taskset": OTHERS, "at": []}]),
        *("spec.evaluation[0]", "nothing says when to evaluate"),
    ),
    "greedy answers to be compared": (
        edited(RUN, "spec.taskset", GENERATED),
        *("spec.evaluation", [{"name": "o", "taskset": OTHERS, "groupSize": 4}]),
        *("spec.evaluation[0]", "needs a temperature above 0"),
    ),
    "more of pass at k than answers": (
        edited(RUN, "spec.taskset", GENERATED),
        *("spec.evaluation", [{"name": "o", "taskset": OTHERS, "passAtK": [2]}]),
        *("spec.evaluation[0]", "passAtK must not be above groupSize"),
    ),
    "filter of a client's groups": (
        *(CLIENT_RUN, "spec.groupFilter", {"zeroVariance": "Keep"}),
        *("spec.groupFilter", "groupFilter belongs to driver Runner"),
    ),
    "rewards of a client": (
        *(CLIENT_RUN, "spec.rewards", [{"name": "right", "exact": {}}]),
        *("spec.rewards", "rewards belongs to driver Runner"),
    ),
    "lengths of a client's answers": (
        *(CLIENT_RUN, "spec.overlong", {"policy": "Drop"}),
        *("spec.overlong", "overlong belongs to driver Runner"),
    ),
    "a reward of no kind": (
        *(RUN, "spec.rewards", [{"name": "right"}]),
        *("spec.rewards[0]", "set exactly one of exact, numeric"),
    ),
    "a reward of two kinds": (
        *(RUN, "spec.rewards", [{"name": "right", "exact": {}, "boxed": {}}]),
        *("spec.rewards[0]", "set exactly one of exact, numeric"),
    ),
    "two rewards of one name": (
        *(RUN, "spec.rewards", [{"name": "a", "exact": {}}, {"name": "a", "boxed": {}}]),
        *("spec.rewards", "duplicate entries"),
    ),
    "a reward with the name of the run's own": (
        *(RUN, "spec.rewards", [{"name": "overlong", "exact": {}}]),
        *("spec.rewards[0].name", "what the run itself adds"),
    ),
    "a reward without end": (
        *(RUN, "spec.rewards", [{"name": "a", "weight": "1e9", "exact": {}}]),
        *("spec.rewards[0].weight", 'from "-1e6" to "1e6"'),
    ),
    "a range upside down": (
        *(RUN, "spec.rewards"),
        [{"name": "a", "judge": {"modelRef": {"name": "m"}, "rubric": "r", "minimum": "1"}}],
        *("spec.rewards[0].judge.minimum", "minimum must be below maximum"),
    ),
    "a path that leads elsewhere": (
        *(RUN, "spec.rewards"),
        [{"name": "a", "http": {"serviceRef": {"name": "s", "port": 80, "path": "@evil/"}}}],
        *("spec.rewards[0].http.serviceRef.path", "must begin with '/'"),
    ),
    "two policies of errors": (
        edited(RUN, "spec.taskset.onError", "Zero"),
        *("spec.rewards", [{"name": "right", "exact": {}}]),
        *("spec.rewards", "set onError and timeoutSeconds in each of rewards"),
    ),
    "the one score of a taskset on its own": (
        *(RUN, "spec.rewardAggregation", "NormalizeThenSum"),
        *("spec.rewardAggregation", "needs rewards"),
    ),
    "rewards divided twice": (
        edited(
            edited(RUN, "spec.rewards", [{"name": "right", "exact": {}}]),
            *("spec.advantage", {"scale": "GroupStd"}),
        ),
        *("spec.rewardAggregation", "NormalizeThenSum"),
        *("spec.rewardAggregation", "remove advantage.scale"),
    ),
    "a soft penalty without buffer": (
        *(RUN, "spec.overlong", {"policy": "SoftPenalty"}),
        *("spec.overlong.bufferTokens", "set both or neither"),
    ),
    "a buffer of nothing": (
        *(RUN, "spec.overlong", {"policy": "Drop", "bufferTokens": 4}),
        *("spec.overlong.bufferTokens", "set both or neither"),
    ),
    "a buffer beyond every answer": (
        *(RUN, "spec.overlong", {"policy": "SoftPenalty", "bufferTokens": 257}),
        *("spec.overlong.bufferTokens", "must not be above sampling.maxTokens"),
    ),
    "answers that cross_entropy cannot mask": (
        edited(RUN, "spec.loss.name", "cross_entropy"),
        *("spec.overlong", {"policy": "Mask"}),
        *("spec.overlong.policy", "choose Drop or another loss"),
    ),
    "a filter of before": (
        *(RUN, "spec.groupFilter", {"truncated": "Drop"}),
        *("spec.groupFilter.truncated", "not declared in schema"),
    ),
    "rollout log of a client": (
        *(CLIENT_RUN, "spec.rolloutLog", {"groupsPerStep": 2}),
        *("spec.rolloutLog", "rolloutLog belongs to driver Runner"),
    ),
    "trackers of a client": (
        *(CLIENT_RUN, "spec.tracking", {"mlflow": {"trackingURI": "http://mlflow:5000"}}),
        *("spec.tracking", "tracking belongs to driver Runner"),
    ),
    "no tracker": (
        *(RUN, "spec.tracking", {"project": "sums"}, "spec.tracking"),
        "set wandb, mlflow, tensorBoard or trackio",
    ),
    "W&B without its key": (
        *(RUN, "spec.tracking", {"wandb": {"entity": "team"}}),
        *("spec.tracking.wandb.apiKeySecretRef", "mode Online needs apiKeySecretRef"),
    ),
    "a password in the address of MLflow": (
        *(RUN, "spec.tracking", {"mlflow": {"trackingURI": "http://me:secret@mlflow:5000"}}),
        *("spec.tracking.mlflow.trackingURI", "without a user"),
    ),
    "no rollout of a step": (
        *(RUN, "spec.rolloutLog", {"groupsPerStep": 0}),
        *("spec.rolloutLog.groupsPerStep", "greater than or equal to 1"),
    ),
    "a mismatch of nothing": (
        *(RUN, "spec.logprobs", {"mismatchKLThreshold": "0"}),
        *("spec.logprobs.mismatchKLThreshold", "must be a quoted decimal above 0"),
    ),
    "stops of a client's answers": (
        *(CLIENT_RUN, "spec.sampling", {"stop": ["x"]}),
        *("spec.sampling", "belong to driver Runner"),
    ),
    "a start of no time": (
        *(MODEL, "spec.rollout.startupSeconds", 1),
        *("spec.rollout.startupSeconds", "greater than or equal to 60"),
    ),
    "model without storage": (MODEL, "spec.storage", ABSENT, "spec.storage", "Required"),
    "rank of 0": (MODEL, "spec.adapter.rank", 0, "spec.adapter.rank", "greater than or equal to 1"),
    "unknown adapter": (MODEL, "spec.adapter.type", "DoRA", "spec.adapter.type", '"LoRA"'),
    "rank without LoRA": (
        *(MODEL, "spec.adapter", {"type": "Full", "rank": 16}),
        *("spec.adapter", "belong to LoRA: remove them or choose it"),
    ),
    "all trained in half precision": (
        edited(MODEL, "spec.adapter", {"type": "Full"}),
        *("spec.trainer", {"dtype": "bfloat16"}),
        *("spec.trainer.dtype", "must be float32 where adapter.type is Full"),
    ),
    "no target modules": (
        *(MODEL, "spec.adapter.targetModules", []),
        *("spec.adapter.targetModules", "at least 1"),
    ),
    "too many replicas": (
        *(MODEL, "spec.rollout.replicas", 65),
        *("spec.rollout.replicas", "less than or equal to 64"),
    ),
    "unknown dtype": (MODEL, "spec.trainer.dtype", "fp16", "spec.trainer.dtype", '"bfloat16"'),
    "bad quantity": (
        *(MODEL, "spec.trainer.template.resources.requests", {"memory": "1 GB"}),
        *("requests[memory]", 'such as 2, "0.5", "500m" or "1Gi"'),
    ),
    "negative quantity": (
        *(MODEL, "spec.trainer.template.resources.limits", {"cpu": -1}),
        *("limits[cpu]", "quantity of 0 or more"),
    ),
    "half a core unquoted": (
        *(MODEL, "spec.trainer.template.resources.limits", {"cpu": 0.5}),
        *("resources.limits.cpu", "must be of type integer,string"),
    ),
    **{
        f"{name} of a pod": (
            *(good, f"spec.{part}.template.{name}", value),
            *(f"spec.{part}.template.{name}", "field not declared in schema"),
        )
        for (name, value), (good, part) in zip(FORBIDDEN.items(), cycle(PODS_OF), strict=False)
    },
    "model name too long": (
        *(MODEL, "metadata.name", "a" * 41),
        *("metadata.name", "at most 40 characters, because its pods"),
    ),
    "model name with a dot": (MODEL, "metadata.name", "a.b", "metadata.name", "rename it"),
    "model name with a digit first": (
        *(MODEL, "metadata.name", "1b"),
        *("metadata.name", "begins with a lower-case letter"),
    ),
    "run name too long": (RUN, "metadata.name", "a" * 51, "metadata.name", "at most 50 characters"),
    "run of no model": (RUN, "spec.modelRef", ABSENT, "spec.modelRef", "Required"),
    "tasks of another directory": (
        *(RUN, "spec.taskset"),
        {"seed": 1, "persistentVolumeClaim": {"claimName": "data", "path": "../secret"}},
        *("spec.taskset.persistentVolumeClaim.path", "relative path without '..'"),
    ),
    "unknown loss": (RUN, "spec.loss.name", "grpo", "spec.loss.name", '"importance_sampling"'),
    "loss of the user's without a function": (
        *(RUN, "spec.loss", {"name": "Custom"}, "spec.loss.customRef", "name the ConfigMap"),
    ),
    "function of a built-in loss": (
        *(RUN, "spec.loss", {**CUSTOM, "name": "ppo"}),
        *("spec.loss.customRef", "remove customRef"),
    ),
    "aggregation of a loss of the user's": (
        *(OWN_LOSS, "spec.loss.aggregation", "TokenMean"),
        *("spec.loss.aggregation", "adds up its loss itself"),
    ),
    "entropy of a loss of the user's": (
        *(OWN_LOSS, "spec.loss.entropyCoefficient", "0.1"),
        *("spec.loss.entropyCoefficient", "remove entropyCoefficient"),
    ),
    "anchor of a loss of the user's": (
        *(OWN_LOSS, "spec.loss.ratioAnchor", "Trainer"),
        *("spec.loss.ratioAnchor", "compares what it likes"),
    ),
    "clip of a loss of the user's": (
        *(OWN_LOSS, "spec.loss.clipHigh", "1.2"),
        *("spec.loss", "clipLow and clipHigh belong to ppo"),
    ),
    "level of a loss of the user's": (
        *(OWN_LOSS, "spec.loss.importanceLevel", "Sequence"),
        *("spec.loss.importanceLevel", "have no ratio"),
    ),
    "correction of a loss of the user's": (
        *(OWN_LOSS, "spec.offPolicyCorrection", {"mode": "TokenMask", "maxRatio": "2"}),
        *("spec.offPolicyCorrection", "corrects by them itself"),
    ),
    "penalty beside a loss of the user's": (
        *(OWN_LOSS, "spec.kl", PENALTY, "spec.kl", "weighs them itself"),
    ),
    "loss of the user's in parts": (
        *(OWN_LOSS, "spec.schedule", {"mode": "Streaming", "minibatches": 2}),
        *("spec.schedule", "loss Custom is of a whole step"),
    ),
    "loss of the user's beside a client's script": (
        *(CLIENT_RUN, "spec.loss", CUSTOM, "spec.loss", "call forward_backward_custom"),
    ),
    "time of a loss that is built in": (
        *(RUN, "spec.timeouts", {"lossSeconds": 60}),
        *("spec.timeouts.lossSeconds", "belongs to loss Custom"),
    ),
    "function that is no name": (
        *(OWN_LOSS, "spec.loss.customRef.function", "a.b"),
        *("spec.loss.customRef.function", "must be the name of a Python function"),
    ),
    "clip of a loss without": (
        *(RUN, "spec.loss.clipHigh", "1.2"),
        *("spec.loss", "clipLow and clipHigh belong to ppo, cispo and gspo: remove them"),
    ),
    "beta of a loss without": (RUN, "spec.loss.beta", "0.1", "spec.loss", "beta belongs to dro"),
    "clip range upside down": (
        *(RUN, "spec.loss", {"name": "cispo", "clipLow": "2", "clipHigh": "1"}),
        *("spec.loss.clipLow", "must not be above clipHigh"),
    ),
    "epsilon for the highest ratio": (
        *(RUN, "spec.loss", {"name": "ppo", "clipHigh": "0.2"}),
        *("spec.loss.clipHigh", 'for an epsilon of 0.2 give clipHigh: "1.2"'),
    ),
    "lowest ratio above 1": (
        *(RUN, "spec.loss", {"name": "cispo", "clipLow": "1.3"}),
        *("spec.loss.clipLow", 'for an epsilon of 0.2 give clipLow: "0.8"'),
    ),
    "loss of a runner that reads no rewards": (
        *(RUN, "spec.loss", {"name": "cross_entropy"}),
        *("spec.loss.name", "choose another loss, such as importance_sampling"),
    ),
    "trainer's anchor where nothing is stale": (
        edited(RUN, "spec.loss.ratioAnchor", "Trainer"),
        *("spec.schedule", {"mode": "Asynchronous", "maxStalenessSteps": 0}),
        *("spec.loss.ratioAnchor", "raise maxStalenessSteps, or remove ratioAnchor"),
    ),
    "kl of nothing": (*(RUN, "spec.kl", {}, "spec.kl", "kl without a reference does nothing"),),
    "length that no completion reaches": (
        *(RUN, "spec.lengthPenalty", {"coefficient": "1", "targetTokens": 256}),
        *("spec.lengthPenalty.targetTokens", "must be below sampling.maxTokens"),
    ),
    "rewards without a weight": (
        *(RUN, "spec.rewards", [{"name": "exact", "exact": {}, "weight": "0"}]),
        *("spec.rewards", "every weight in rewards is 0"),
    ),
    "learning rate of 0": (
        *(RUN, "spec.learningRate", "0"),
        *("spec.learningRate", 'quoted decimal above 0, such as "1e-4"'),
    ),
    "learning rate in words": (
        *(RUN, "spec.learningRate", "fast"),
        *("spec.learningRate", 'quoted decimal above 0, such as "1e-4"'),
    ),
    "learning rate unquoted": (
        *(RUN, "spec.learningRate", 0.0001),
        *("spec.learningRate", "expected string"),
    ),
    "learning rate absent": (
        *(RUN, "spec.learningRate", ABSENT),
        *("spec.learningRate", "driver Runner needs learningRate: give a quoted decimal"),
    ),
    "schedule of a client's own rate": (
        *(CLIENT_RUN, "spec.learningRateSchedule", {"type": "Linear"}),
        *("spec.learningRateSchedule", "learningRateSchedule needs learningRate"),
    ),
    "warm-up of all steps": (
        *(RUN, "spec.learningRateSchedule", {"warmupSteps": 20}),
        *("spec.learningRateSchedule.warmupSteps", "must be below steps"),
    ),
    "minimum of a constant rate": (
        *(RUN, "spec.learningRateSchedule", {"minimum": "1e-6"}),
        *("spec.learningRateSchedule.minimum", "minimum belongs to Linear and Cosine"),
    ),
    "minimum above the rate": (
        *(RUN, "spec.learningRateSchedule", {"type": "Linear", "minimum": "1e-3"}),
        *("spec.learningRateSchedule.minimum", "must not be above learningRate"),
    ),
    "unknown schedule": (
        *(RUN, "spec.learningRateSchedule", {"type": "Polynomial"}),
        *("spec.learningRateSchedule.type", '"Cosine"'),
    ),
    "budget of nothing": (*(RUN, "spec.budget", {}), *("spec.budget", "budget limits nothing")),
    "budget of no token": (
        *(RUN, "spec.budget", {"maxTrainedTokens": 0}),
        *("spec.budget.maxTrainedTokens", "greater than or equal to 1"),
    ),
    "deadline of no time": (
        *(RUN, "spec.activeDeadlineSeconds", 0),
        *("spec.activeDeadlineSeconds", "greater than or equal to 1"),
    ),
    "negative time to live": (
        *(RUN, "spec.ttlSecondsAfterFinished", -1),
        *("spec.ttlSecondsAfterFinished", "greater than or equal to 0"),
    ),
    "fewer tries than none": (
        *(RUN, "spec.runner.backoffLimit", -1),
        *("spec.runner.backoffLimit", "greater than or equal to 0"),
    ),
    "beta1 of 1": (
        *(RUN, "spec.optimizer.beta1", "1.0"),
        *("spec.optimizer.beta1", 'from "0" to below "1"'),
    ),
    "negative weight decay": (
        *(RUN, "spec.optimizer.weightDecay", "-0.1"),
        *("spec.optimizer.weightDecay", "0 or more"),
    ),
    "greedy sampling": (
        *(RUN, "spec.sampling.temperature", "0"),
        *("spec.sampling.temperature", "above 0"),
    ),
    "no steps": (RUN, "spec.steps", 0, "spec.steps", "greater than or equal to 1"),
    "group of one": (
        *(RUN, "spec.groupSize", 1),
        *("spec.groupSize", "needs groupSize of 2 or more"),
    ),
    "constant of another aggregation": (
        *(RUN, "spec.loss.aggregationConstant", 64),
        *("spec.loss.aggregationConstant", "remove it or choose Constant"),
    ),
    "constant that is missing": (
        *(RUN, "spec.loss.aggregation", "Constant"),
        *("spec.loss.aggregationConstant", "give a number of tokens"),
    ),
    "level of a loss without a ratio": (
        *(RUN, "spec.loss", {"name": "dro", "importanceLevel": "Sequence"}),
        *("spec.loss.importanceLevel", "have no ratio: remove importanceLevel"),
    ),
    "level of a loss that has one": (
        *(RUN, "spec.loss", {"name": "gspo", "importanceLevel": "Token"}),
        *("spec.loss.importanceLevel", "or choose ppo"),
    ),
    "anchor of a loss that compares nothing": (
        *(RUN, "spec.loss", {"name": "cross_entropy", "ratioAnchor": "Trainer"}),
        *("spec.loss.ratioAnchor", "compares with no log-probs"),
    ),
    "double correction": (
        *(RUN, "spec.offPolicyCorrection", {"mode": "TokenTruncate"}),
        *("spec.offPolicyCorrection.mode", "choose a Mask, or set loss.ratioAnchor: Trainer"),
    ),
    "correction of a loss that compares nothing": (
        *(edited(RUN, "spec.loss", {"name": "cross_entropy"}), "spec.offPolicyCorrection"),
        *({"mode": "TokenMask"}, "spec.offPolicyCorrection", "compares with no log-probs"),
    ),
    "highest ratio without a mode": (
        *(RUN, "spec.offPolicyCorrection", {"maxRatio": "2"}),
        *("spec.offPolicyCorrection.maxRatio", "choose one such as TokenTruncate"),
    ),
    "lowest ratio of a truncation": (
        *(edited(RUN, "spec.loss.ratioAnchor", "Trainer"), "spec.offPolicyCorrection"),
        *({"mode": "TokenTruncate", "minRatio": "0.5"}, "spec.offPolicyCorrection.minRatio"),
        "belongs to TokenMask and SequenceMask",
    ),
    "lowest ratio above the highest": (
        *(RUN, "spec.offPolicyCorrection", {"mode": "TokenMask", "minRatio": "2.5"}),
        *("spec.offPolicyCorrection.minRatio", "must not be above maxRatio"),
    ),
    "reward for less entropy": (
        *(RUN, "spec.loss.entropyCoefficient", "-0.1"),
        *("spec.loss.entropyCoefficient", "0 or more"),
    ),
    "penalty without a reference": (
        *(RUN, "spec.kl", {"coefficient": "0.1"}),
        *("spec.kl.reference", "give reference: {base: {}}"),
    ),
    "reference that is nothing": (
        *(RUN, "spec.kl", {"coefficient": "0.1", "reference": {}}),
        *("spec.kl.reference", "set exactly one of base and checkpointRef"),
    ),
    "reference that is two": (
        *(
            RUN,
            "spec.kl",
            {"reference": {"base": {}, "checkpointRef": {"name": "tiny-000004"}}},
        ),
        *("spec.kl.reference", "set exactly one of base and checkpointRef"),
    ),
    "batch whose last step is too far from its samples": (
        edited(RUN, "spec.batch", {"minibatches": 2, "epochs": 2}),
        *("spec.schedule", {"mode": "Asynchronous", "maxStalenessSteps": 2}),
        *("spec.batch", "raise that, or take fewer steps with a batch"),
    ),
    "batch that is streamed": (
        edited(RUN, "spec.batch", {"epochs": 2}),
        *("spec.schedule", {"mode": "Streaming", "minibatches": 2}),
        *("spec.batch", "remove batch, or choose another mode"),
    ),
    "spread of a batch in parts": (
        edited(RUN, "spec.batch", {"minibatches": 2}),
        *("spec.advantage", {"scale": "BatchStd"}),
        *("spec.batch", "choose GroupStd, or use epochs alone"),
    ),
    "batch of too many groups": (
        edited(RUN, "spec.batch", {"minibatches": 64}),
        *("spec.groupsPerStep", 65),
        *("spec.batch", "must not be above 4096"),
    ),
    "batch of a client": (
        *(CLIENT_RUN, "spec.batch", {"epochs": 2}),
        *("spec.batch", "a client's script chooses its batches"),
    ),
    "penalty that pulls nowhere": (
        *(RUN, "spec.kl", {**PENALTY, "placement": "Loss", "estimator": "K1"}),
        *("spec.kl.estimator", "choose K2 or K3"),
    ),
    "discount of a loss": (
        *(RUN, "spec.kl", {**PENALTY, "placement": "Loss", "discount": "0.5"}),
        *("spec.kl.discount", "remove it or choose Advantage"),
    ),
    "discount above one": (
        *(RUN, "spec.kl", {**PENALTY, "discount": "1.5"}),
        *("spec.kl.discount", 'must be from "0" to "1"'),
    ),
    "penalty on advantages that a loss does not read": (
        *(edited(RUN, "spec.loss", {"name": "cross_entropy"}), "spec.kl", PENALTY),
        *("spec.kl.placement", "set kl.placement: Loss"),
    ),
    "group of one to compare with others": (
        *(edited(RUN, "spec.advantage", {"estimator": "LeaveOneOut"}), "spec.groupSize", 1),
        *("spec.groupSize", "or take the reward itself with advantage.estimator None"),
    ),
    "spread of a group without a group": (
        *(RUN, "spec.advantage", {"estimator": "None", "scale": "GroupStd"}),
        *("spec.advantage.scale", "choose GroupMean, or scale None or BatchStd"),
    ),
    "estimator of advantages that are given": (
        *(CLIENT_RUN, "spec.advantage", {"source": "Precomputed", "estimator": "LeaveOneOut"}),
        *("spec.advantage.estimator", "estimator belongs to source Estimated"),
    ),
    "scale of advantages that are given": (
        *(CLIENT_RUN, "spec.advantage", {"source": "Precomputed", "scale": "BatchStd"}),
        *("spec.advantage.scale", "scale belongs to source Estimated"),
    ),
    "advantages that a loss does not read": (
        *(edited(RUN, "spec.loss", {"name": "cross_entropy"}), "spec.advantage.scale", "GroupStd"),
        *("spec.advantage", "cross_entropy reads no advantages"),
    ),
    "advantages that no taskset gives": (
        *(RUN, "spec.advantage.source", "Precomputed"),
        *("spec.advantage", "needs driver Client"),
    ),
    "runner without tasks": (
        *(RUN, "spec.taskset", ABSENT),
        *("spec.taskset", "name a source, or set driver: Client"),
    ),
    "two tasksets": (
        *(RUN, "spec.taskset.configMap", TASKS),
        *(
            "spec.taskset",
            "set exactly one of reasoningGym, inline, configMap",
        ),
    ),
    "weights that sum to 90": (
        *(RUN, "spec.taskset.reasoningGym", mixed(60, 30)),
        *("spec.taskset.reasoningGym.datasets", "weightPercent must sum to 100"),
    ),
    "a dataset and a mix": (
        *(RUN, "spec.taskset.reasoningGym", {"dataset": "chain_sum", **mixed(60, 40)}),
        *("spec.taskset.reasoningGym", "exactly one of dataset and datasets"),
    ),
    "config of a mix": (
        *(RUN, "spec.taskset.reasoningGym", {"config": {"a": 1}, **mixed(60, 40)}),
        *("spec.taskset.reasoningGym.config", "config belongs to dataset"),
    ),
    "inline task without a question": (
        *(RUN, "spec.taskset", {"seed": 1, "inline": [{"id": "a", "answer": "2"}]}),
        *("spec.taskset.inline[0]", "set exactly one of prompt and messages"),
    ),
    "no inline tasks": (
        *(RUN, "spec.taskset", {"seed": 1, "inline": []}),
        *("spec.taskset.inline", "at least 1"),
    ),
    "target that is no tile": (
        *(RUN, "spec.taskset", {"seed": 1, "game2048": {"target": 100}}),
        *("spec.taskset.game2048.target", "power of 2"),
    ),
    "template of a game": (
        *(RUN, "spec.taskset"),
        {"seed": 1, "game2048": {}, "promptTemplate": "{question}!"},
        *("spec.taskset", "are of tasks with an answer"),
    ),
    "extraction of a game": (
        *(RUN, "spec.taskset"),
        {"seed": 1, "calculator": {}, "answerExtraction": "Whole"},
        *("spec.taskset", "are of tasks with an answer"),
    ),
    "system prompt of a Python image": (
        *(RUN, "spec.taskset", {"seed": 1, "python": PYTHON, "systemPrompt": "Be brief."}),
        *("spec.taskset.systemPrompt", "write their own chat"),
    ),
    "two tools without their names": (
        *(RUN, "spec.taskset"),
        {
            "seed": 1,
            "openEnv": {
                "serviceRef": {"name": "snake", "port": 8000},
                "tools": [{"type": "function"}, {"type": "function"}],
            },
        },
        *("spec.taskset.openEnv.toolAction", "set it to CallTool"),
    ),
    "function without a module": (
        *(RUN, "spec.taskset", {"seed": 1, "python": {**PYTHON, "rollout": "rollout"}}),
        *("spec.taskset.python.rollout", "must be module:function"),
    ),
    "unknown policy of scorer errors": (
        *(RUN, "spec.taskset.onError", "Ignore"),
        *("spec.taskset.onError", "DropGroup"),
    ),
    "score without time": (
        *(RUN, "spec.taskset.scoreTimeoutSeconds", 0),
        *("spec.taskset.scoreTimeoutSeconds", "greater than or equal to 1"),
    ),
    "taskset without seed": (RUN, "spec.taskset.seed", ABSENT, "spec.taskset.seed", "Required"),
    "dataset that is no name": (
        *(RUN, "spec.taskset.reasoningGym.dataset", "Basic Arithmetic"),
        *("reasoningGym.dataset", "such as basic_arithmetic"),
    ),
    "template without question": (
        *(RUN, "spec.taskset.promptTemplate", "Answer!"),
        *("spec.taskset.promptTemplate", "must contain {question}"),
    ),
    "misspelt field": (
        *(RUN, "spec.group_size", 4),
        *("spec.group_size", "field not declared in schema"),
    ),
    "head without mode": (HEAD, "spec.mode", ABSENT, "spec.mode", "Required"),
    "head in an unknown mode": (HEAD, "spec.mode", "Follow", "spec.mode", '"Track"'),
    "pin of nothing": (
        *(HEAD, "spec.mode", "Pin"),
        *("spec.checkpointRef", "mode Pin needs checkpointRef: name the Checkpoint to hold"),
    ),
    "gate without a figure": (
        *(HEAD, "spec.gate", {"metric": "reward/mean", "min": "high"}),
        *("spec.gate.min", "quoted decimal"),
    ),
    "gate by a figure of the step": (
        *(HEAD, "spec.gate", {"metric": "rollout/reward/mean", "min": "0.5"}),
        *("spec.gate.metric", "must be measured of a checkpoint: reward/..., such as reward/mean"),
    ),
    "best by a figure of the step": (
        *(RUN, "spec.checkpoint", {"keepBest": {"metric": "loss/sum", "count": 3}}),
        *("spec.checkpoint.keepBest.metric", "is of the step that made it"),
    ),
    "checkpoint before step 0": (CHECKPOINT, "spec.step", -1, "spec.step", "equal to 0"),
    "trained checkpoint at step 0": (
        *(CHECKPOINT, "spec.step", 0),
        *("spec.step", "step 0 is an adapter from outside"),
    ),
    "checkpoint with a short digest": (
        *(CHECKPOINT, "spec.digest", "sha256:abc"),
        *("spec.digest", "should match"),
    ),
    "checkpoint of an unknown branch": (
        *(CHECKPOINT, "spec.branch", "feature"),
        *("spec.branch", "should match"),
    ),
}

# name: (changed object, field, value, what the message says)
CHANGES: dict[str, tuple[Manifest, str, Any, str]] = {
    "source of a model": (
        *(MODEL, "spec.source", {"checkpointRef": {"name": "x"}}),
        "source is immutable: create another TrainableModel",
    ),
    "optimizer state of a fork": (
        edited(MODEL, "spec.source", {"checkpointRef": {"name": "a-000001"}}),
        *("spec.source.checkpointRef.optimizerState", "Reset"),
        "source is immutable: create another TrainableModel",
    ),
    "adapter of a model": (MODEL, "spec.adapter.rank", 8, "adapter is immutable"),
    "storage of a model": (
        *(MODEL, "spec.storage.persistentVolumeClaim.claimName", "other"),
        "persistentVolumeClaim is immutable",
    ),
    "model of a run": (RUN, "spec.modelRef.name", "other", "modelRef is immutable"),
    "driver of a run": (RUN, "spec.driver", "Client", "driver is immutable"),
    "loss of a run": (RUN, "spec.loss.name", "cispo", "loss.name is immutable"),
    "fewer steps": (RUN, "spec.steps", 19, "never shrink: suspend the run"),
    "model of a head": (HEAD, "spec.modelRef.name", "other", "modelRef is immutable"),
    "step of a checkpoint": (CHECKPOINT, "spec.step", 2, "a Checkpoint's spec is immutable"),
    "removed field of a checkpoint": (
        *(CHECKPOINT, "spec.runRef", ABSENT),
        "a Checkpoint's spec is immutable",
    ),
}

# Each is a change of an object that is there.
FREE = {
    "more steps": edited(RUN, "spec.steps", 40),
    "learning rate": edited(RUN, "spec.learningRate", "3e-5"),
    "group size": edited(RUN, "spec.groupSize", 16),
    "rewards": edited(RUN, "spec.rewards", REWARDS),
    "limits": edited(edited(RUN, "spec.activeDeadlineSeconds", 60), "spec.budget", BUDGET),
    "schedule": edited(RUN, "spec.learningRateSchedule", {"type": "Linear"}),
    "suspension": edited(RUN, "spec.suspend", True),
    "replicas": edited(MODEL, "spec.rollout.replicas", 0),
    "scrub": edited(MODEL, "spec.storage.scrub", {"intervalHours": 0}),
    "rollback": edited(
        edited(HEAD, "spec.mode", "Pin"), "spec.checkpointRef", {"name": "arith-000001"}
    ),
}
