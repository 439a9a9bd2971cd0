"""Where settings come from besides flags: variables of the environment, and the YAML file that one of them names."""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .core.nearest import did_you_mean
from .errors import StartupError

ENV_PREFIX = "PACELINE_"
_CONFIG = f"{ENV_PREFIX}CONFIG"
_NO_SETTING = f"{ENV_PREFIX}API_KEY"
"""A variable of `paceline chat`, which is a client."""

_OF_A_SERVICE = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_URL_OF_A_SERVICE = re.compile(r"(tcp|udp|sctp)://")


def _is_of_a_service(name: str, value: str) -> bool:
    """Whether Kubernetes made this variable of a Service, whose name may begin with "paceline".

    Of a Service `paceline`, each pod of its namespace gets PACELINE_SERVICE_HOST, PACELINE_SERVICE_PORT_HTTP,
    PACELINE_PORT_80_TCP_ADDR and so on, and PACELINE_PORT=tcp://10.0.0.1:80.
    """
    name = name.upper()
    return bool(_OF_A_SERVICE.fullmatch(name) or (name.endswith("_PORT") and _URL_OF_A_SERVICE.match(value)))


def read_sources(settings: Collection[str]) -> dict[str, Any]:
    """The values of those settings that variables or the file give; variables are stronger.

    Raises StartupError if the file is missing or broken, or for a variable that is none of these settings.
    """
    _check_variables(settings)
    variables = {name: f"{ENV_PREFIX}{name.upper()}" for name in settings}
    values = {name: os.environ.get(variable, "") for name, variable in variables.items()}
    is_given = {name: value and not _is_of_a_service(variables[name], value) for name, value in values.items()}
    return _read_file() | {name: value for name, value in values.items() if is_given[name]}


def _read_file() -> dict[str, Any]:
    """What the YAML file says, if there is one."""
    config = os.environ.get(_CONFIG)
    if not config:
        return {}
    if not Path(config).is_file():
        raise StartupError(f"config: no such file: {config}")
    import yaml  # imported here because most services are started without a file

    try:
        content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except Exception as error:  # of the YAML library, of Python, or of what makes settings of what it read
        reason = " ".join(str(error).split())
        raise StartupError(f"config: {config} is not a YAML file of settings: {reason}") from error
    if not isinstance(content, dict | None):
        raise StartupError(f"config: {config} is not a YAML file of settings: it is no mapping")
    return content or {}


def _check_variables(settings: Collection[str]) -> None:
    """Raise StartupError if a variable with our prefix is none of these settings."""
    known = {_CONFIG, _NO_SETTING, *(f"{ENV_PREFIX}{name.upper()}" for name in settings)}
    unknown = [
        name
        for name, value in sorted(os.environ.items())
        if name.startswith(ENV_PREFIX) and name not in known and not _is_of_a_service(name, value)
    ]
    if unknown:
        told = ", ".join(f"{name}{did_you_mean(name, known)}" for name in unknown)
        raise StartupError(f"unknown environment variable {told} (see paceline serve --help)")
