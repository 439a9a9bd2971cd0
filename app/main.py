"""The ASGI entry point, for any ASGI server: `uvicorn app.main:app`.

The process serves HTTP and starts an engine as its child. Settings come from PACELINE_* variables and the YAML file.
`paceline serve` does the same with a supervisor around it.
"""

import atexit
import logging
import os
import signal
import sys
from typing import Any

from fastapi import FastAPI

from .errors import EXIT_STARTUP_ERROR, PacelineError, StartupError
from .log import configure_logging
from .own_engine import app_with_engine
from .settings import load_settings

log = logging.getLogger(__name__)


def make_app() -> FastAPI:
    """An application with an engine. The model is found at once. Raises StartupError if that fails."""
    settings = load_settings()
    configure_logging(settings, process="api")
    return app_with_engine(settings, _on_end)


def _on_end(error: PacelineError) -> None:
    """Say why there is no service behind the last words of the server, or end the server as a signal would."""
    if isinstance(error, StartupError):
        atexit.register(_print_reason, error)
    else:
        log.error("%s", error)
        os.kill(os.getpid(), signal.SIGTERM)


def _print_reason(error: StartupError) -> None:
    """Print why there is no service, as `paceline serve` does."""
    print(f"paceline: {error}", file=sys.stderr)


def __getattr__(name: str) -> Any:
    """Make `app` when a server asks for it, not when this module is imported."""
    if name == "app":
        try:
            return make_app()
        except StartupError as error:  # instead of the server's traceback
            _print_reason(error)
            sys.exit(EXIT_STARTUP_ERROR)
    raise AttributeError(name)
