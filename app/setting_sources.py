"""Where settings come from besides flags: variables of the environment, and the YAML file that one of them names."""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, YamlConfigSettingsSource

from .errors import StartupError

ENV_PREFIX = "PACELINE_"
_CONFIG = f"{ENV_PREFIX}CONFIG"

_OF_A_SERVICE = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_URL_OF_A_SERVICE = re.compile(r"(tcp|udp|sctp)://")


class Variables(EnvSettingsSource):
    """Variables of the environment, without those that Kubernetes makes."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """See pydantic-settings."""
        value, key, is_complex = super().get_field_value(field, field_name)
        is_foreign = _is_of_a_service(f"{ENV_PREFIX}{field_name}", value or "")
        return None if is_foreign else value, key, is_complex


def _is_of_a_service(name: str, value: str) -> bool:
    """Whether Kubernetes made this variable of a Service, whose name may begin with "paceline".

    Of a Service `paceline`, each pod of its namespace gets PACELINE_SERVICE_HOST, PACELINE_SERVICE_PORT_HTTP,
    PACELINE_PORT_80_TCP_ADDR and so on, and PACELINE_PORT=tcp://10.0.0.1:80.
    """
    name = name.upper()
    return bool(_OF_A_SERVICE.fullmatch(name) or (name.endswith("_PORT") and _URL_OF_A_SERVICE.match(value)))


def sources(settings_cls: type[BaseSettings]) -> tuple[PydanticBaseSettingsSource, ...]:
    """Variables and YAML file, the stronger first. Raises StartupError if the file is missing or broken."""
    variables = Variables(settings_cls)
    config = os.environ.get(_CONFIG)
    if not config:
        return (variables,)
    if not Path(config).is_file():
        raise StartupError(f"config: no such file: {config}")
    try:
        return variables, YamlConfigSettingsSource(settings_cls, Path(config))
    except Exception as error:  # of the YAML library, of Python, or of what makes settings of what it read
        reason = " ".join(str(error).split())
        raise StartupError(f"config: {config} is not a YAML file of settings: {reason}") from error


def check_variables(settings: Collection[str]) -> None:
    """Raise StartupError if a variable with our prefix is none of these settings."""
    known = {_CONFIG, *(f"{ENV_PREFIX}{name.upper()}" for name in settings)}
    unknown = [
        name
        for name, value in sorted(os.environ.items())
        if name.startswith(ENV_PREFIX) and name not in known and not _is_of_a_service(name, value)
    ]
    if unknown:
        raise StartupError(f"unknown environment variable {', '.join(unknown)}; see paceline serve --help")
