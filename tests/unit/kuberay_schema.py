"""What a RayJob `ray.io/v1` may hold, as far as deploy/ uses it, and the operator's own rules.

The schema follows KubeRay's API reference (v1.7.0). It is closed: an unknown key fails, because
the API server would silently drop a typo.
"""

from __future__ import annotations

from typing import Any, Final

from kubernetes import client
from packaging.version import Version
from pydantic import ValidationError

Json = dict[str, Any]


def _object(required: list[str], **properties: Json) -> Json:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


_STRING: Final[Json] = {"type": "string", "minLength": 1}
_BOOLEAN: Final[Json] = {"type": "boolean"}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0}
_STRINGS: Final[Json] = {"type": "object", "additionalProperties": {"type": "string"}}
_LABEL: Final[Json] = {"type": "string", "pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?$"}
#: `pod_problems` compares the content of a pod with Kubernetes' own types.
_POD: Final[Json] = _object(["spec"], metadata={"type": "object"}, spec={"type": "object"})

_RAY_CLUSTER: Final = _object(
    ["headGroupSpec", "rayVersion"],
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=_object(["mode"], mode={"enum": ["disabled", "token"]}, secretName=_STRING),
    headGroupSpec=_object(["template"], rayStartParams=_STRINGS, template=_POD),
    workerGroupSpecs={
        "type": "array",
        "items": _object(
            ["groupName", "minReplicas", "maxReplicas", "template"],
            groupName=_LABEL,
            replicas=_COUNT,
            minReplicas=_COUNT,
            maxReplicas=_COUNT,
            rayStartParams=_STRINGS,
            template=_POD,
        ),
    },
)

RAY_JOB: Final = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_object(
        ["name"], name=_LABEL | {"maxLength": 47}, labels=_STRINGS, annotations=_STRINGS
    ),
    spec=_object(
        ["entrypoint", "rayClusterSpec"],
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        entrypoint=_STRING,
        runtimeEnvYAML=_STRING,
        backoffLimit=_COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes=_BOOLEAN,
        ttlSecondsAfterFinished=_COUNT,
        suspend=_BOOLEAN,
        submitterPodTemplate=_POD,
        rayClusterSpec=_RAY_CLUSTER,
    ),
)


def pods(job: Json) -> dict[str, Json]:
    """The pod specs of a RayJob by their role."""
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    found = {
        "submitter": spec["submitterPodTemplate"],
        "head": cluster["headGroupSpec"]["template"],
    }
    for group in cluster["workerGroupSpecs"]:
        found[group["groupName"]] = group["template"]
    return found


def operator_problems(job: Json) -> list[str]:
    """What the operator refuses beyond the schema, as far as deploy/ comes near it."""
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    problems: list[str] = []
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        problems.append("suspend needs shutdownAfterJobFinishes")
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        problems.append("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
    token = cluster.get("authOptions", {}).get("mode") == "token"
    if token and Version(cluster["rayVersion"]) < Version("2.52"):
        problems.append("token authentication needs Ray 2.52")
    for group in cluster["workerGroupSpecs"]:
        if not group["minReplicas"] <= group.get("replicas", 0) <= group["maxReplicas"]:
            problems.append(f"{group['groupName']}: replicas are out of their bounds")
    return problems


def kubernetes_problems(value: Json, type_name: str) -> list[str]:
    """Fields of `value` that a Kubernetes type such as `V1PodSpec` does not have, or not so."""
    try:
        getattr(client, type_name).model_validate(value)
    except ValidationError as error:
        return [".".join(map(str, e["loc"])) + f": {e['msg']}" for e in error.errors()]
    return []


def closed(schema: Any) -> Any:
    """A CRD's schema made strict: unknown fields, which the API server drops, are refused."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: closed(item) for key, item in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict
