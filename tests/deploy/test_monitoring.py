"""Rules and dashboard: what they name is there, and alerts fire when they should."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from app.metrics import Metrics

REPOSITORY = Path(__file__).parents[2]
RULES = REPOSITORY / "deploy" / "prometheus" / "rules.yml"
DASHBOARD = REPOSITORY / "deploy" / "grafana" / "dashboards" / "paceline.json"


def metrics_text() -> str:
    return Metrics().render().decode()


def metrics() -> set[str]:
    """Names of all series, as Prometheus stores them."""
    text = metrics_text()
    names = set(re.findall(r"^# TYPE (\w+) \w+$", text, re.MULTILINE))
    histograms = re.findall(r"^# TYPE (\w+) histogram$", text, re.MULTILINE)
    return names | {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}


@pytest.mark.parametrize("file", [RULES, DASHBOARD])
def test_every_metric_that_is_asked_for_exists(file: Path) -> None:
    named = set(re.findall(r"\bpaceline_\w+", file.read_text()))
    assert len(named) > 8
    assert named <= metrics(), named - metrics()


def test_every_panel_asks_for_something_of_its_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(set(asked)) == len(asked)
    assert len({panel["title"] for panel in panels}) == len(panels)


def test_every_histogram_of_requests_has_a_panel() -> None:
    wanted = {name for name in metrics() if re.fullmatch(r"paceline_request_\w+_bucket", name)}
    assert len(wanted) > 5
    assert wanted <= set(re.findall(r"\bpaceline_\w+", DASHBOARD.read_text()))


def test_every_panel_is_of_the_jobs_and_instances_that_are_chosen() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["job", "model", "instance"]
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            filters = re.findall(r'paceline_\w+(\{job=~"\$job", instance=~"\$instance"\})?', target["expr"])
            assert all(filters), target["expr"]


def test_refusals_are_counted_from_zero() -> None:
    """An increase cannot be seen of a series whose first value is 1."""
    counts = re.findall(r'^paceline_requests_rejected_total\{reason="(\w+)"\} 0\.0$', metrics_text(), re.MULTILINE)
    assert {
        "unauthorized",
        "forbidden",
        "queue_full",
        "tenant_queue_full",
        "rate_limited",
        "loading",
        "draining",
        "deadline",
    } == set(counts)


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
@pytest.mark.parametrize("work", ["check config prometheus.yml", "check rules rules.yml", "test rules rules.test.yml"])
def test_promtool_accepts_the_rules_and_alerts_fire(work: str) -> None:
    command = ["promtool", *work.split()]
    done = subprocess.run(command, cwd=RULES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    alerts = {rule["alert"] for rule in rules if "alert" in rule}
    tests = yaml.safe_load(RULES.with_name("rules.test.yml").read_text())["tests"]
    samples = [sample for test in tests for case in test["promql_expr_test"] for sample in case["exp_samples"]]
    firing = set(re.findall(r'alertname="(\w+)"', " ".join(sample["labels"] for sample in samples)))
    assert alerts <= firing, alerts - firing
