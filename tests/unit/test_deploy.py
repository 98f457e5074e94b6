"""The manifests of deploy/: they render, fit the schema, are secure, and match the repository."""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kuberay_schema
import pytest
import yaml

from raydpo.config.file import load_config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
VARIANTS = ["base", "overlays/cpu", "overlays/gpu-8"]
Json = dict[str, Any]


@cache
def rendered(variant: str) -> str:
    """What `kubectl apply -k` would send; the base is readable without kubectl, too."""
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize", str(DEPLOY / variant)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if variant != "base":
        pytest.skip("overlays are rendered by kubectl, which is not installed")
    names = yaml.safe_load((DEPLOY / "base/kustomization.yaml").read_text())["resources"]
    return "\n---\n".join((DEPLOY / "base" / name).read_text() for name in names)


@pytest.fixture(params=VARIANTS)
def manifests(request: pytest.FixtureRequest) -> list[Json]:
    return list(yaml.safe_load_all(rendered(request.param)))


@pytest.fixture
def job(manifests: list[Json]) -> Json:
    jobs = [manifest for manifest in manifests if manifest["kind"] == "RayJob"]
    assert len(jobs) == 1
    return copy.deepcopy(jobs[0])


def containers(job: Json) -> list[Json]:
    return [c for pod in kuberay_schema.pods(job).values() for c in pod["spec"]["containers"]]


def test_the_job_fits_the_schema(job: Json) -> None:
    jsonschema.validate(job, kuberay_schema.RAY_JOB)
    assert kuberay_schema.operator_problems(job) == []


def test_pods_fit_the_types_of_kubernetes(job: Json) -> None:
    for role, pod in kuberay_schema.pods(job).items():
        assert kuberay_schema.kubernetes_problems(pod, "V1PodTemplateSpec") == [], role


def test_the_other_manifests_fit_the_types_of_kubernetes(manifests: list[Json]) -> None:
    types = {
        "ServiceAccount": "V1ServiceAccount",
        "PersistentVolumeClaim": "V1PersistentVolumeClaim",
        "NetworkPolicy": "V1NetworkPolicy",
    }
    others = {m["kind"]: m for m in manifests if m["kind"] != "RayJob"}
    assert set(others) == set(types)
    for kind, manifest in others.items():
        assert kuberay_schema.kubernetes_problems(manifest, types[kind]) == [], kind


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.shutDownAfterJobFinishes", True),
        ("spec.submissionMode", "K8sMode"),
        ("spec.backoffLimit", "2"),
        ("spec.rayClusterSpec.authOptions.mode", "tokens"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
    ],
)
def test_the_schema_refuses_typos(path: str, value: object) -> None:
    job = next(m for m in yaml.safe_load_all(rendered("base")) if m["kind"] == "RayJob")
    place = job
    *parents, last = path.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, kuberay_schema.RAY_JOB)


def test_the_types_of_kubernetes_refuse_typos_and_gaps() -> None:
    pod = {"containers": [{"image": "x", "securitycontext": {}, "ports": [{"containerPort": "1"}]}]}
    problems = kuberay_schema.kubernetes_problems(pod, "V1PodSpec")
    wrong = {problem.partition(":")[0] for problem in problems}
    assert {"containers.0.name", "containers.0.securitycontext"} <= wrong
    assert any(place.startswith("containers.0.ports.0.containerPort") for place in wrong)


@pytest.mark.skipif("KUBERAY_CRD" not in os.environ, reason="KUBERAY_CRD names no file")
def test_the_job_fits_the_operators_own_schema(job: Json) -> None:
    crd = yaml.safe_load(Path(os.environ["KUBERAY_CRD"]).read_text(encoding="utf-8"))
    version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(job, kuberay_schema.closed(schema))


def test_the_entrypoint_runs_files_of_this_repository(
    job: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    program, script, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert program == "python"
    assert (ROOT / script).is_file()
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    config = load_config(ROOT / options["--config"], [options["--set"]])
    copied = re.findall(r"^COPY (\w+) \w+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert script.split("/")[0] in copied
    model = Path(config.model.path)
    if model.is_absolute():  # else it is of the hub
        assert model.relative_to(ROOT).parts[0] in copied
    mounts = containers(job)[-1]["volumeMounts"]
    assert config.output in [mount["mountPath"] for mount in mounts]


def test_all_nodes_run_the_same_image_and_share_the_runs(job: Json) -> None:
    assert len({container["image"] for container in containers(job)}) == 1
    for role, pod in kuberay_schema.pods(job).items():
        if role != "submitter":
            claims = [v.get("persistentVolumeClaim") for v in pod["spec"]["volumes"]]
            assert {"claimName": "raydpo-runs"} in claims


def test_the_ray_version_is_the_locked_one(job: Json) -> None:
    for lock in ("cpu.txt", "cuda.txt"):
        text = (ROOT / "requirements" / lock).read_text()
        assert f"\nray=={job['spec']['rayClusterSpec']['rayVersion']} \\\n" in text


def test_a_lost_cluster_is_tried_again_and_a_finished_one_goes(job: Json) -> None:
    spec = job["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["activeDeadlineSeconds"] > 0


def test_the_head_asks_for_a_token_and_takes_no_work(job: Json) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_pods_obey_the_restricted_pod_security_standard(job: Json) -> None:
    for role, pod in kuberay_schema.pods(job).items():
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True, role
        assert context["runAsUser"] > 0, role
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, role
        assert pod["spec"]["automountServiceAccountToken"] is False, role
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"]), role
        assert not any("hostPath" in volume for volume in pod["spec"]["volumes"]), role


def test_containers_have_no_way_to_more_rights(job: Json) -> None:
    for container in containers(job):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in context


def test_containers_get_the_resources_that_they_ask_for(job: Json) -> None:
    for container in containers(job):
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert {"cpu", "memory"} <= set(resources["limits"])


def test_no_secret_stands_in_a_manifest(job: Json) -> None:
    for container in containers(job):
        for variable in container.get("env", []):
            if re.search("TOKEN|KEY|SECRET|PASSWORD", variable["name"]):
                assert "value" not in variable
                assert "secretKeyRef" in variable["valueFrom"]


def test_the_network_policy_covers_every_pod(manifests: list[Json], job: Json) -> None:
    policy = next(m["spec"] for m in manifests if m["kind"] == "NetworkPolicy")
    selected = policy["podSelector"]["matchLabels"].items()
    for role, pod in kuberay_schema.pods(job).items():
        assert selected <= pod["metadata"]["labels"].items(), role
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    blocks = [to["ipBlock"] for rule in policy["egress"] for to in rule["to"] if "ipBlock" in to]
    assert all("169.254.0.0/16" in block["except"] for block in blocks)


def test_gpu_workers_hold_the_gpus_that_the_job_asks_for() -> None:
    job = next(m for m in yaml.safe_load_all(rendered("overlays/gpu-8")) if m["kind"] == "RayJob")
    config = load_config(ROOT / "jobs/chat_8b_8gpus.yaml")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"]) * group["replicas"]
    assert config.training is not None
    assert gpus >= config.training.num_workers
    assert gpus >= config.sampling.engines.count * config.sampling.engines.tensor_parallel


def test_the_image_runs_as_a_number_that_is_not_root() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])


def test_the_image_copies_what_is_there() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name
        assert f"!{name.split('/')[0]}" in ignored, name
