"""What `kubectl apply -k` would send: built by kubectl, judged by Kubernetes' schemas, and held against the code."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.api.operations import health
from app.metrics import Metrics
from app.setting_sources import ENV_PREFIX
from app.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = sorted(folder.name for folder in (FOLDER / "overlays").iterdir())
OF_OPERATORS = {"ScaledObject", "ServiceMonitor"}
"""Kinds that Kubernetes itself does not know."""

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")


def built(folder: str) -> list[dict[str, Any]]:
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER / folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> dict[str, Any]:
    """All objects by their kind; there is one of each."""
    found = built(f"overlays/{request.param}")
    assert len({each["kind"] for each in found}) == len(found)
    return {each["kind"]: each for each in found}


def test_every_object_is_what_kubernetes_takes(objects: dict[str, Any]) -> None:
    version = kubernetes_validate.latest_version()
    checked = {kind for kind in objects if kind not in OF_OPERATORS}
    for kind in checked:
        kubernetes_validate.validate(objects[kind], version, strict=True)
    assert checked >= {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}


def test_everything_selects_the_pods(objects: dict[str, Any]) -> None:
    labels = {"app.kubernetes.io/name": "paceline"}
    assert objects["Deployment"]["spec"]["template"]["metadata"]["labels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["NetworkPolicy"]["spec"]["podSelector"] == {"matchLabels": labels}
    for kind in ("Deployment", "PodDisruptionBudget", "ServiceMonitor"):
        if kind in objects:
            assert objects[kind]["spec"]["selector"] == {"matchLabels": labels}


def test_the_pods_drain_before_they_are_killed(objects: dict[str, Any]) -> None:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    settings = {entry["name"]: entry.get("value") for entry in container["env"]}
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + int(settings[f"{ENV_PREFIX}DRAIN_TIMEOUT"]) + 5
    paths = {getattr(route, "path", None) for route in health.router.routes}
    probes = [container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")]
    assert probes == ["/health/ready", "/health/live", "/health/ready"]
    assert set(probes) <= paths


def test_settings_and_metrics_are_there(objects: dict[str, Any]) -> None:
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    names = {entry["name"] for entry in container["env"]}
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert {name for name in names if name.startswith(ENV_PREFIX)} <= known
    metrics = set(re.findall(r"paceline_\w+", Metrics().render().decode()))
    named = set(re.findall(r"\bpaceline_\w+", yaml.safe_dump(objects)))
    assert named <= metrics, named - metrics


def test_the_pods_may_do_little(objects: dict[str, Any]) -> None:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    assert not pod["enableServiceLinks"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/cache", "/tmp"}


def test_an_apply_leaves_the_number_of_replicas_to_the_autoscaler(objects: dict[str, Any]) -> None:
    assert ("replicas" in objects["Deployment"]["spec"]) != bool(
        {"HorizontalPodAutoscaler", "ScaledObject"} & set(objects)
    )
    (alone,) = [each for each in built("base") if each["kind"] == "Deployment"]
    assert alone["spec"]["replicas"] == 2


def test_names_are_found_and_http_comes_in(objects: dict[str, Any]) -> None:
    policy = objects["NetworkPolicy"]["spec"]
    names = [rule for rule in policy["egress"] if {"port": 53, "protocol": "UDP"} in rule["ports"]]
    assert names
    assert all("to" not in rule for rule in names)
    assert policy["ingress"] == [{"ports": [{"port": "http"}]}]


def test_the_inference_pool_is_of_these_pods_and_their_metrics(objects: dict[str, Any]) -> None:
    values = yaml.safe_load((FOLDER / "inference-pool.values.yaml").read_text())
    pod = objects["Deployment"]["spec"]["template"]
    assert values["inferencePool"]["modelServers"]["matchLabels"] == pod["metadata"]["labels"]
    (port,) = pod["spec"]["containers"][0]["ports"]
    assert values["inferencePool"]["targetPorts"] == [{"number": port["containerPort"]}]
    extension = values["inferenceExtension"]
    picker = yaml.safe_load(extension["pluginsCustomConfig"][extension["pluginsConfigFile"]])
    parameters = {plugin["type"]: plugin.get("parameters", {}) for plugin in picker["plugins"]}
    (engine,) = parameters["core-metrics-extractor"]["engineConfigs"]
    assert engine.pop("name") == parameters["core-metrics-extractor"]["defaultEngine"]
    assert engine.keys() == {"queuedRequestsSpec", "runningRequestsSpec", "kvUsageSpec"}
    assert set(engine.values()) <= set(re.findall(r"^paceline_\w+", Metrics().render().decode(), re.MULTILINE))
    used = {plugin["pluginRef"] for profile in picker["schedulingProfiles"] for plugin in profile["plugins"]}
    assert used <= parameters.keys()
