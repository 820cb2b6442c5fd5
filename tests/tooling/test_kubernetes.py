"""The manifests of deploy/kubernetes, as `kubectl kustomize` builds them. No cluster runs them here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest

import worker
from app.names import NAME
from app.settings import ApiSettings, Settings
from app.temporal import load_config
from dev.stack import ROOT
from tests.kit.custom_resources import SCHEMAS
from tests.kit.images import IMAGE, words_of
from tests.kit.kubernetes import MANIFESTS, Build, Manifest, build

VERSIONS = ("1.29", "1.33", "1.37")
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "autoscaling": ("autoscaling",),
    "worker-controller": ("worker-controller",),
}
CLOSING = 2  # seconds that the API needs after its open requests: docs/operations.md


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Build]:
    return {name: build(tmp_path_factory.mktemp(name), *components) for name, components in VARIANTS.items()}


@pytest.fixture(params=VARIANTS)
def built(request: pytest.FixtureRequest, builds: dict[str, Build]) -> Build:
    return builds[request.param]


# --- schemas


def validate(manifest: Manifest, version: str) -> None:
    """Raises a ValidationError for a manifest that this version of Kubernetes would not accept as it stands."""
    schema = SCHEMAS.get(manifest["kind"])
    if schema is None:
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    jsonschema.validate(manifest, schema)
    if manifest["kind"] == "WorkerDeployment":
        template = manifest["spec"]["template"]
        spec = {"selector": {"matchLabels": template["metadata"]["labels"]}, "template": template}
        validate(
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": manifest["metadata"], "spec": spec}, version
        )


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_match_the_schemas_of_kubernetes(built: Build, version: str) -> None:
    assert len(built.manifests) >= 10
    for manifest in built.manifests:
        validate(manifest, version)


@pytest.mark.parametrize("kind", ["Deployment", "NetworkPolicy", "ScaledObject", "WorkerDeployment", "Connection"])
def test_manifest_with_an_unknown_field_does_not_match_its_schema(builds: dict[str, Build], kind: str) -> None:
    manifest = next(each for built in builds.values() for each in built.all(kind))
    with pytest.raises(jsonschema.ValidationError, match="typo"):
        validate({**manifest, "spec": {**manifest["spec"], "typo": 1}}, VERSIONS[-1])


def test_committed_overlay_builds_without_a_change(builds: dict[str, Build]) -> None:
    assert Build.of(MANIFESTS / "production").manifests in [each.manifests for each in builds.values()]


# --- security


def test_pods_meet_the_restricted_security_standard(built: Build) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and what is not in it."""
    (user,) = (re.fullmatch(r"USER (\d+):(\d+)", line) for line in IMAGE if line.startswith("USER "))
    assert user
    for pod in built.pods().values():
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "volumes", "initContainers"} & spec.keys()
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": int(user[1]),
            "runAsGroup": int(user[2]),
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not any("hostPort" in port for port in container["ports"])


def test_containers_have_requests_and_limits(built: Build) -> None:
    assert built.containers().keys() == {"api", "worker"}
    for container in built.containers().values():
        assert all(container["resources"][each].keys() == {"cpu", "memory"} for each in ("requests", "limits"))
        assert re.fullmatch(rf"registry\.example/{NAME}:\d.*", container["image"])


def allowed(built: Build, direction: str) -> dict[str, set[Any]]:
    """The ports that policies allow, by pod."""
    found: dict[str, set[Any]] = {name: set() for name in built.pods()}
    for policy in built.all("NetworkPolicy"):
        for rule in policy["spec"].get(direction, []):
            for name in built.selected(policy["spec"]["podSelector"]["matchLabels"]):
                found[name] |= {port["port"] for port in rule["ports"]}
    return found


def test_network_is_closed_but_for_what_each_pod_needs(built: Build) -> None:
    closed = built.one("NetworkPolicy", "deny-all")["spec"]
    assert closed.keys() == {"podSelector", "policyTypes"}
    assert closed["policyTypes"] == ["Ingress", "Egress"]
    assert built.selected(closed["podSelector"]["matchLabels"]) == {"api", "worker"}
    assert allowed(built, "egress") == {"api": {53, 443, 7233, 27017}, "worker": {53, 443, 7233, 27017}}
    assert allowed(built, "ingress") == {"api": {"http", "metrics"}, "worker": {"http", "metrics"}}
    for policy in built.all("NetworkPolicy"):
        assert all(rule["from"] for rule in policy["spec"].get("ingress", []))


def test_no_secret_is_committed_and_each_process_has_its_own(built: Build) -> None:
    assert built.all("Secret") == []
    page = (ROOT / "docs" / "deployment.md").read_text()
    documented = dict(re.findall(r"kubectl create secret generic (\w+) (.*?)\n\n", page, re.DOTALL))
    given = {name: set(re.findall(r"--from-literal=(\w+)=", options)) for name, options in documented.items()}
    assert given == {"worker": {"MONGODB_URI"}, "api": {"MONGODB_URI", "API_KEYS"}}
    referenced = {
        name: [source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source]
        for name, container in built.containers().items()
    }
    assert referenced == {name: [name] for name in given}


# --- life


def test_grace_periods_cover_what_the_programs_take_to_stop(built: Build) -> None:
    pods, containers = built.pods(), built.containers()
    assert pods["worker"]["spec"]["terminationGracePeriodSeconds"] > worker.STOP_LIMIT
    words = words_of("CMD")
    (_, pre_stop) = containers["api"]["lifecycle"]["preStop"]["exec"]["command"]
    open_requests = int(words[words.index("--timeout-graceful-shutdown") + 1])
    assert pods["api"]["spec"]["terminationGracePeriodSeconds"] > int(pre_stop) + open_requests + CLOSING
    assert "lifecycle" not in containers["worker"]


def test_probes_ask_for_paths_at_ports_that_the_programs_serve(built: Build) -> None:
    api, worker = built.containers()["api"], built.containers()["worker"]
    paths = [[c[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")] for c in (api, worker)]
    assert paths == [["/healthz", "/healthz"], ["/healthz", "/readyz"]]
    words = words_of("CMD")
    assert {port["name"]: port["containerPort"] for port in api["ports"]} == {
        "http": int(words[words.index("--port") + 1])
    }
    assert "command" not in api
    addresses = {each["name"]: each["value"] for each in worker["env"]}
    assert addresses == {
        f"WORKER_{port['name'].upper()}_ADDRESS": f"0.0.0.0:{port['containerPort']}" for port in worker["ports"]
    }
    for container in (api, worker):
        for probe in ("livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] in [port["name"] for port in container["ports"]]
            assert container[probe]["timeoutSeconds"] > 1
        assert container["livenessProbe"]["failureThreshold"] * 10 >= 60
    assert built.one("Service")["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]


def test_at_least_one_pod_of_each_program_stays(built: Build) -> None:
    scaled = {each["spec"]["scaleTargetRef"]["name"]: each["spec"] for each in built.all("ScaledObject")}
    for owner in built.all("Deployment", "WorkerDeployment"):
        name, spec = owner["metadata"]["name"], owner["spec"]
        assert ("replicas" in spec) is (name not in scaled)  # not both
        assert spec.get("replicas", scaled.get(name, {}).get("minReplicaCount")) >= 2
        if owner["kind"] == "Deployment":
            assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        budget = built.one("PodDisruptionBudget", name)["spec"]
        assert budget["maxUnavailable"] == 1
        assert built.selected(budget["selector"]["matchLabels"]) == {name}
        for spread in spec["template"]["spec"]["topologySpreadConstraints"]:
            assert built.selected(spread["labelSelector"]["matchLabels"]) == {name}
    assert built.selected(built.one("Service")["spec"]["selector"]) == {"api"}


# --- settings


def test_containers_set_only_variables_that_the_programs_read(built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, container in built.containers().items():
        fields = (ApiSettings if name == "api" else Settings).model_fields
        given = built.settings().keys() | {each["name"] for each in container.get("env", [])}
        read_by_sdk = {variable for variable in given if variable.startswith("TEMPORAL_")}
        assert given - read_by_sdk <= {field.upper() for field in fields}
        for variable in read_by_sdk:
            monkeypatch.setenv(variable, "value-of-this-test:1")
            assert "value-of-this-test:1" in str(load_config())
            monkeypatch.delenv(variable)


def test_changed_setting_rolls_out_and_reaches_all_that_connect_to_temporal(tmp_path: Path) -> None:
    elsewhere = {"TEMPORAL_ADDRESS": "temporal.example:7233", "TEMPORAL_NAMESPACE": "shop"}
    names = set()
    for folder, settings in (("before", {}), ("after", elsewhere)):
        built = build(tmp_path / folder, "worker-controller", **settings)
        config = built.one("ConfigMap")
        names.add(config["metadata"]["name"])
        for container in built.containers().values():
            assert {"configMapRef": {"name": config["metadata"]["name"]}} in container["envFrom"]
    assert len(names) == 2
    assert built.one("Connection")["spec"]["hostPort"] == elsewhere["TEMPORAL_ADDRESS"]
    options = built.one("WorkerDeployment")["spec"]["workerOptions"]
    assert options["temporalNamespace"] == elsewhere["TEMPORAL_NAMESPACE"]
    assert options["connectionRef"]["name"] == built.one("Connection")["metadata"]["name"]


def test_autoscaler_reads_variables_that_the_worker_has_and_never_scales_to_zero(builds: dict[str, Build]) -> None:
    """The relay, which starts orders that the API could not start, runs in the worker."""
    built = builds["autoscaling"]
    spec = built.one("ScaledObject")["spec"]
    assert 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
    (trigger,) = spec["triggers"]
    variables = [value for name, value in trigger["metadata"].items() if name.endswith("FromEnv")]
    assert sorted(variables) == ["TASK_QUEUE", "TEMPORAL_ADDRESS", "TEMPORAL_NAMESPACE"]
    assert set(variables) <= built.settings().keys()


def test_worker_controller_runs_the_worker_instead_of_the_deployment(builds: dict[str, Build]) -> None:
    plain, controlled = builds["plain"], builds["worker-controller"]
    assert [each["metadata"]["name"] for each in controlled.all("Deployment")] == ["api"]
    assert controlled.pods()["worker"] == plain.pods()["worker"]
