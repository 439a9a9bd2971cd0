"""Nothing that comes from outside the source becomes code: neither from files nor from sockets."""

import ast
import re
import stat
from pathlib import Path

import psutil

from tests.security.test_hostile_clients import Server, server

__all__ = ["server"]

REPOSITORY = Path(__file__).parents[2]
FORBIDDEN_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "np.load", "numpy.load", "yaml.load", "send_pyobj", "recv_pyobj"}


def forbidden(source: str) -> list[str]:
    """Names in Python source that would turn data into code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS or name.endswith(("_pyobj", ".load_module", ".exec_module")):
                found.append(name)
            if any(k.arg == "trust_remote_code" and ast.unparse(k.value) != "False" for k in node.keywords):
                found.append("trust_remote_code")
    return found


def test_no_data_becomes_code() -> None:
    for bad in ("import pickle", "from marshal import loads", "torch.load(f)", "eval(x)", "f(trust_remote_code=x)"):
        assert forbidden(bad), bad
    found = {str(file): forbidden(file.read_text()) for file in REPOSITORY.glob("app/**/*.py")}
    assert len(found) > 100
    assert not {file: names for file, names in found.items() if names}


def test_no_archive_is_unpacked_and_no_file_is_served() -> None:
    """Links and `..` in paths cannot lead anywhere: neither feature exists, and files of batches have made-up names."""
    names = re.compile(r"\b(tarfile|zipfile|unpack_archive|extractall|StaticFiles|FileResponse)\b")
    found = {str(file): names.findall(file.read_text()) for file in REPOSITORY.glob("app/**/*.py")}
    assert len(found) > 100
    assert found.pop(str(REPOSITORY / "app" / "api" / "batches" / "files.py"))
    assert not {file: used for file, used in found.items() if used}


def test_every_package_has_one_version() -> None:
    for name in ("requirements.txt", "requirements-test.txt", "deploy/ray/requirements.txt"):
        lines = [line.split("#")[0].strip() for line in (REPOSITORY / name).read_text().splitlines()]
        assert not [line for line in lines if line and not re.fullmatch(r"[\w.\[\]-]+==[\w.]+( *;.*)?", line)], name


def test_only_http_listens_and_the_engines_socket_is_private(server: Server) -> None:
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    connections = [connection for process in processes for connection in process.net_connections("inet")]
    listening = {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}
    assert listening == {int(server.url.rpartition(":")[2])}
    engine = psutil.Process(server.children()["engine"])
    (file,) = {Path(c.laddr) for c in engine.net_connections("unix") if str(c.laddr).endswith("/engine")}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_the_tests_that_security_md_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (REPOSITORY / "deploy" / "SECURITY.md").read_text())
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in (REPOSITORY / file).read_text(), (file, name)
