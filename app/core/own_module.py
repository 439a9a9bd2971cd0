"""How a module of this package is run as a process of its own, whatever the package is called.

In the repository the package is the folder `app`; installed, it is `paceline`, because a project of the user's may well
have an `app` of its own.
"""

import sys
from pathlib import Path

_PACKAGE = __name__.partition(".")[0]

FOLDER = Path(__file__).parents[2]
"""The folder that holds this package. A process that starts here imports this one, and none of the user's."""


def command(module: str) -> list[str]:
    """The command that runs a module, such as `engine.server`, with the working directory `FOLDER`."""
    return [sys.executable, "-m", f"{_PACKAGE}.{module}"]
