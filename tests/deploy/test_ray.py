"""Paceline on a real Ray cluster, of two nodes in this machine with room for one replica each."""

import os
import re
import secrets
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import yaml

from tests import web
from tests.clients.environments import python_environment
from tests.deploy.load import Load
from tests.patience import PATIENCE, wait_until
from tests.server.keys import api_keys, digest
from tests.server.process import free_ports

pytestmark = pytest.mark.clients

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "deploy" / "ray"
START_PATIENCE = 3 * PATIENCE  # for a replica, or two after each other, while others use the two cores
KEY = "a-key"
CONVERSATIONS = [f"conversation {number}" for number in range(16)]
"""Enough to reach every replica."""


class Cluster:
    """Two nodes, and what is asked of the service on them."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self._programs, self._folder = environment, folder
        self._control_port, self._http_port, *self._metrics_ports = free_ports(4)
        self._token = secrets.token_hex(32)
        self._nodes: list[psutil.Process] = []
        self.url = f"http://127.0.0.1:{self._http_port}"

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "PYTHONPATH": f"{REPOSITORY}:{FOLDER}",
            "RAY_ADDRESS": f"127.0.0.1:{self._control_port}",
            "RAY_SERVE_SESSION_ID_HEADER_KEY": "X-Conversation-ID",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # else a replica stands still while anything else wants its core
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """Without a service at first. What is left of it at the end is killed."""
        head = ["--head", "--port", str(self._control_port), "--temp-dir", str(self._folder / "ray")]
        with ExitStack() as stack:
            stack.enter_context(self._node(*head, "--include-dashboard", "false", metrics_port=self._metrics_ports[0]))
            wait_until(lambda: _listens(self._control_port))
            join = ["--address", f"127.0.0.1:{self._control_port}"]
            stack.enter_context(self._node(*join, metrics_port=self._metrics_ports[1]))
            yield

    @contextmanager
    def _node(self, *arguments: str, metrics_port: int) -> Iterator[None]:
        command = [self._programs / "ray", "start", "--block", "--node-ip-address", "127.0.0.1", *arguments]
        command += ["--num-cpus", "1", "--object-store-memory", str(80 * 2**20)]
        command += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        command += ["--metrics-export-port", str(metrics_port)]
        with (
            (self._folder / f"node-{metrics_port}.log").open("w") as log,
            subprocess.Popen(command, stdout=log, stderr=log, env=self._environment()) as process,
        ):
            node = psutil.Process(process.pid)
            self._nodes.append(node)
            try:
                yield
            finally:
                for each in (node, *node.children(recursive=True)):
                    each.kill()

    def deploy(self, **settings: str) -> None:
        """What deploy/ray/serve.yaml says, on a smaller scale: from one replica of one core to two."""
        config = yaml.safe_load((FOLDER / "serve.yaml").read_text())
        config["http_options"] |= {"host": "127.0.0.1", "port": self._http_port}
        (application,) = config["applications"]
        application["runtime_env"]["env_vars"] |= {
            "PACELINE_CPU_THREADS": "1",
            "PACELINE_KV_CACHE_MEMORY": "256MiB",
            "PACELINE_API_KEYS": str(self._folder / "keys.yaml"),
            **settings,
        }
        (deployment,) = application["deployments"]
        deployment["ray_actor_options"]["num_cpus"] = 1
        deployment["autoscaling_config"] |= {
            "min_replicas": 1,
            "max_replicas": 2,
            "target_ongoing_requests": 1,
            "upscale_delay_s": 1,
            "downscale_delay_s": 3600,
        }
        (self._folder / "keys.yaml").write_text(api_keys({"a": {"keys": [digest(KEY)]}}))  # JSON is YAML, too
        (self._folder / "serve.yaml").write_text(yaml.safe_dump(config))
        command = [self._programs / "serve", "run", "--non-blocking", self._folder / "serve.yaml"]
        environment = self._environment()
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert run.returncode == 0, run.stdout + run.stderr

    def replicas(self) -> list[psutil.Process]:
        """The replicas' processes, those that are still loading too."""
        processes = [process for node in self._nodes for process in node.children(recursive=True)]
        return [process for process in processes if _title(process).startswith("ray::ServeReplica")]

    def load(self) -> Load:
        return Load(self.url, {"Authorization": f"Bearer {KEY}"}, clients=3)

    def client(self, conversation: str) -> openai.OpenAI:
        headers = {"X-Conversation-ID": conversation}
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, default_headers=headers)

    def metric(self, conversation: str, name: str) -> float:
        """A figure of the replica that has a conversation; 0 if there is none at the moment."""
        headers = {"X-Conversation-ID": conversation, "Authorization": f"Bearer {KEY}"}
        try:
            text = web.get(f"{self.url}/metrics", headers=headers).text
        except httpx.TransportError:  # the proxies are starting
            return 0
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0

    def serving(self) -> dict[float, str]:
        """For each replica when its process started, which tells them apart, and a conversation of its."""
        found: dict[float, str] = {}
        for conversation in CONVERSATIONS:
            if start := self.metric(conversation, "process_start_time_seconds"):
                found[start] = conversation
            if len(found) == 2:
                break
        return found

    def wait_for_two(self, *, without: tuple[float, ...] = ()) -> dict[float, str]:
        """`serving`, once there are two of them, and none of those `without`."""
        found = {}

        def are_there() -> bool:
            nonlocal found
            found = self.serving()
            return len(found) == 2 and not found.keys() & set(without)

        wait_until(are_there, pause=1, patience=START_PATIENCE)  # what asks more often slows down what it waits for
        return found

    def exported(self, name: str) -> list[float]:
        """What Ray exports for Prometheus, from all nodes and replicas."""
        texts = [web.get(f"http://127.0.0.1:{port}/metrics").text for port in self._metrics_ports]
        return [float(value) for text in texts for value in re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    python = python_environment("ray", FOLDER / "requirements.txt", with_torch=True)
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short path: sockets are in it
        cluster = Cluster(python.parent, Path(folder))
        with cluster.running():
            cluster.deploy()
            wait_until(cluster.serving, pause=1, patience=START_PATIENCE)
            yield cluster


@pytest.fixture(scope="module", autouse=True)
def growth(cluster: Cluster) -> Load:
    """The load that brought the second replica."""
    load = cluster.load()
    cluster.wait_for_two()
    load.stop()
    return load


def ask(client: openai.OpenAI) -> str:
    """What a real client reads from a stream."""
    question: Any = [{"role": "user", "content": "Name the capital of France."}]
    model = client.models.list().data[0].id
    with client.chat.completions.create(model=model, messages=question, temperature=0, stream=True) as stream:
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def tell(client: openai.OpenAI, tokens: int) -> Iterator[str | None]:
    """A long stream: first what comes, and at the end why it ended."""
    body = {"ignore_eos": True}
    with client.completions.create(
        model="SmolLM2-135M-Instruct", prompt="Once", max_tokens=tokens, stream=True, extra_body=body
    ) as stream:
        for chunk in stream:
            yield chunk.choices[0].finish_reason or chunk.choices[0].text


def test_load_brings_a_second_replica(growth: Load) -> None:
    assert growth.whole
    assert not growth.problems, growth.problems[:3]


def test_every_replica_streams_event_by_event(cluster: Cluster) -> None:
    answers = {ask(cluster.client(conversation)) for conversation in cluster.wait_for_two().values()}
    assert len(answers) == 1
    assert "Paris" in answers.pop()
    for conversation in cluster.wait_for_two().values():
        stream = tell(cluster.client(conversation), tokens=60)
        next(stream)
        assert cluster.metric(conversation, "paceline_num_requests_running") == 1  # the first event came at once
        assert len(list(stream)) > 30  # and the others one by one


def test_a_conversation_stays_with_its_replica(cluster: Cluster) -> None:
    windows = cluster.wait_for_two().values()

    def asked() -> list[float]:
        return [cluster.metric(conversation, "paceline_prompt_tokens_total") for conversation in windows]

    for conversation in windows:
        before = asked()
        for _ in range(3):
            ask(cluster.client(conversation))
        assert sum(now > then for now, then in zip(asked(), before, strict=True)) == 1


def test_work_stops_when_its_client_is_gone(cluster: Cluster) -> None:
    aborts = 'paceline_request_success_total{finished_reason="abort"}'
    for conversation in cluster.wait_for_two().values():
        before = cluster.metric(conversation, aborts)
        stream = tell(cluster.client(conversation), tokens=2000)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        wait_until(lambda c=conversation, b=before: cluster.metric(c, aborts) == b + 1)


def test_ray_exports_the_figures_of_every_replica(cluster: Cluster) -> None:
    name = "paceline_prompt_tokens_total"
    own = [cluster.metric(conversation, name) for conversation in cluster.wait_for_two().values()]
    assert 0 not in own
    wait_until(lambda: sorted(cluster.exported(f"ray_{name}")) == sorted(own), pause=1)


def test_a_replica_that_is_killed_is_replaced(cluster: Cluster) -> None:
    (start, own), (_, other) = cluster.wait_for_two().items()
    victim = min(cluster.replicas(), key=lambda process: abs(process.create_time() - start))
    engine = victim.children()
    streams = [tell(cluster.client(conversation), tokens=100) for conversation in (own, other)]
    for stream in streams:
        next(stream)
    victim.send_signal(signal.SIGKILL)
    with pytest.raises((openai.APIError, httpx.TransportError)):
        list(streams[0])
    assert list(streams[1])[-1] == "length"
    replicas = cluster.wait_for_two(without=(start,))
    assert not any(process.is_running() for process in engine)
    assert all("Paris" in ask(cluster.client(conversation)) for conversation in (own, *replicas.values()))


def test_an_update_loses_no_request_and_cuts_no_stream(cluster: Cluster) -> None:
    before = cluster.wait_for_two()
    load = cluster.load()
    with ThreadPoolExecutor() as pool:
        streams = [tell(cluster.client(conversation), tokens=100) for conversation in before.values()]
        for stream in streams:
            next(stream)
        long = [pool.submit(list, stream) for stream in streams]
        cluster.deploy(PACELINE_SERVED_MODEL_NAME="updated")
        after = cluster.wait_for_two(without=tuple(before))
        load.stop()
        assert [each.result()[-1] for each in long] == ["length", "length"]
    assert not load.problems, load.problems[:3]
    for conversation in after.values():
        assert cluster.client(conversation).models.list().data[0].id == "updated"
