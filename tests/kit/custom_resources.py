"""Schemas of the custom resources in deploy/kubernetes: those of their fields that these manifests may use.

Written after the definitions that KEDA 2.22 and the Temporal Worker Controller 1.10 install. A field that is not here
is refused: the API server would drop it without a word.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def text(pattern: str = ".") -> Schema:
    return {"type": "string", "pattern": pattern}


def fields(required: Schema, **optional: Schema) -> Schema:
    return {"type": "object", "required": [*required], "properties": required | optional, "additionalProperties": False}


def some(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def resource(api_version: str, kind: str, spec: Schema) -> Schema:
    metadata = fields({"name": text(NAME)}, namespace=text(NAME), labels={"type": "object"})
    return fields({"apiVersion": {"const": api_version}, "kind": {"const": kind}, "metadata": metadata, "spec": spec})


NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
HOST_PORT = r"^[a-zA-Z0-9.-]+:[0-9]+$"
DURATION = text(r"^([0-9]+[smh])+$")
COUNT: Schema = {"type": "integer", "minimum": 0}

# All parameters of a trigger are text, including numbers.
TRIGGER = fields(
    {"type": {"const": "temporal"}},
    metadata=fields(
        {"endpointFromEnv": text(), "taskQueueFromEnv": text()},
        namespaceFromEnv=text(),
        queueTypes=text(r"^(workflow|activity|nexus)(,(workflow|activity|nexus))*$"),
        targetQueueSize=text(r"^[1-9]\d*$"),
        activationTargetQueueSize=text(r"^\d+$"),
        tlsServerName=text(),
    ),
    authenticationRef=fields({"name": text(NAME)}),
)
SECRET = fields({"name": text(NAME)})

SCHEMAS = {
    "ScaledObject": resource(
        "keda.sh/v1alpha1",
        "ScaledObject",
        fields(
            {"scaleTargetRef": fields({"name": text(NAME)}), "triggers": some(TRIGGER)},
            minReplicaCount=COUNT,
            maxReplicaCount=COUNT,
            pollingInterval=COUNT,
        ),
    ),
    "Connection": resource(
        "temporal.io/v1alpha1",
        "Connection",
        fields(
            {"hostPort": text(HOST_PORT)},
            mutualTLSSecretRef=SECRET,
            apiKeySecretRef=fields({"name": text(NAME), "key": text()}),
            tls=fields({}, caCertSecretRef=SECRET, serverName=text()),
        ),
    ),
    "WorkerDeployment": resource(
        "temporal.io/v1alpha1",
        "WorkerDeployment",
        fields(
            {
                "template": {"type": "object"},  # a pod template of Kubernetes
                "workerOptions": fields(
                    {"connectionRef": fields({"name": text(NAME)}), "temporalNamespace": text()},
                    unsafeCustomBuildID=text(),
                ),
                "rollout": fields(
                    {"strategy": {"enum": ["Manual", "AllAtOnce", "Progressive"]}},
                    steps=some(
                        fields(
                            {
                                "rampPercentage": {"type": "integer", "minimum": 1, "maximum": 100},
                                "pauseDuration": DURATION,
                            }
                        )
                    ),
                    gate={"type": "object"},
                ),
                "sunset": fields({}, scaledownDelay=DURATION, deleteDelay=DURATION),
            },
            replicas=COUNT,
            minReadySeconds=COUNT,
            progressDeadlineSeconds=COUNT,
        ),
    ),
}
