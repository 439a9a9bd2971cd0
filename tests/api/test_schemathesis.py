"""schemathesis makes up requests from /openapi.json, and finds no answer that the document does not allow."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.api.conftest import Server

_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
SECONDS = 1200
"""Half a minute on two quiet cores."""


@pytest.mark.clients
def test_schemathesis_finds_nothing(server: Server, tmp_path: Path) -> None:
    program = shutil.which("schemathesis")
    if program is None:
        pytest.skip("schemathesis is not installed")
    options = ["--checks", _CHECKS, "--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--seed", "1"]
    run = subprocess.run(
        [program, "run", f"{server.url}/openapi.json", *options, "--generation-database", "none", "--no-color"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:]
