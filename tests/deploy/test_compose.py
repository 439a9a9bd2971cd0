"""docker-compose.yml, judged by the Compose Specification, and held against the code."""

import re

import pytest
import yaml
from compose_spec import PyCompose, PyOptions

from app.setting_sources import ENV_PREFIX
from app.settings import Settings
from tests.deploy.replica import REPOSITORY

TEXT = (REPOSITORY / "docker-compose.yml").read_text()
OVERRIDES = [path.read_text() for path in sorted((REPOSITORY / "deploy").glob("compose.*.yaml"))]


def parsed(text: str) -> PyCompose:
    """With the default of each variable; ValueError where it is not what the specification has."""
    compose = PyOptions(apply_merge=True).from_yaml(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))
    compose.validate()
    return compose


def test_the_compose_file_is_one() -> None:
    assert set(parsed(TEXT).service_names()) == {"paceline-1", "paceline-2", "nginx", "prometheus", "grafana"}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("stop_signal:", "stop_sgnal:"), ("read_only: true", "read_only: 7"), ("{cache: {}, ", "{"), ("1gb", "1 gnu")],
)
def test_a_mistake_in_it_would_be_seen(right: str, wrong: str) -> None:
    with pytest.raises(ValueError):
        parsed(TEXT.replace(right, wrong))


def test_what_the_compose_file_names_is_there() -> None:
    services = yaml.safe_load(TEXT)["services"]
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
    replicas = [service for name, service in services.items() if name.startswith("paceline")]
    assert len(replicas) == 2
    for replica in replicas:
        assert {name for name in replica["environment"] if name.startswith(ENV_PREFIX)} <= known
    further = [service for text in OVERRIDES for service in yaml.safe_load(text)["services"].values()]
    for service in (*services.values(), *further):
        for volume in service.get("volumes", ()):
            if volume.startswith("./"):
                assert (REPOSITORY / volume.split(":")[0]).exists(), volume


def test_every_variable_is_in_the_example() -> None:
    example = re.findall(r"^(\w+)=", (REPOSITORY / ".env.example").read_text(), re.MULTILINE)
    assert set(re.findall(r"\$\{(\w+)", TEXT + "".join(OVERRIDES))) | {"COMPOSE_FILE"} == set(example)


@pytest.mark.parametrize("text", OVERRIDES)
def test_further_files_change_services_that_are_there(text: str) -> None:
    """What they add to a service, it has not, or as a list, to which compose appends."""
    services, changes = yaml.safe_load(TEXT)["services"], yaml.safe_load(text)["services"]
    parsed(text)
    assert changes.keys() <= services.keys()
    for name, change in changes.items():
        for key, value in change.items():
            assert key not in services[name] or isinstance(value, list)
