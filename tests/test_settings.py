"""Where settings come from, and how wrong ones are reported."""

import re
from pathlib import Path
from typing import Any

import pytest

from app.errors import StartupError
from app.settings import Settings, load_settings


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "paceline.yaml"
    path.write_text("max_queue: 3\nrequest_limits:\n  max_tools: 4\n  max_prompt_size: 1MiB\n")
    monkeypatch.setenv("PACELINE_CONFIG", str(path))
    return path


@pytest.mark.usefixtures("config")
def test_flags_are_stronger_than_variables_and_these_than_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (load_settings().max_queue, load_settings().request_limits.max_tools) == (3, 4)
    assert load_settings().request_limits.max_prompt_size == 2**20
    monkeypatch.setenv("PACELINE_MAX_QUEUE", "5")
    monkeypatch.setenv("PACELINE_REQUEST_LIMITS", '{"max_tools": 6}')
    assert (load_settings().max_queue, load_settings().request_limits.max_tools) == (5, 6)
    flags = load_settings(max_queue="7", request_limits='{"max_tools": 8}')
    assert (flags.max_queue, flags.request_limits.max_tools) == (7, 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_queu: 3", "settings: max_queu: there is no such setting; did you mean max_queue"),
        ("3: max_queue", "settings: 3: "),
        ("- max_queue", "it is no mapping"),
        ("max_queue: [", "not a YAML file of settings: while parsing"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(text: str, words: str, config: Path) -> None:
    config.write_text(text)
    with pytest.raises(StartupError, match=words):
        load_settings()
    config.write_text("")
    assert load_settings().max_queue == Settings().max_queue


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", "request_limits: Value error, not JSON"),
        ("3", "request_limits: Input should be"),
        ('{"max_tols": 3}', "request_limits.max_tols: there is no such setting; did you mean max_tools"),
        ('{"max_tools": -1}', "request_limits.max_tools: Input should be greater"),
    ],
)
def test_a_wrong_limit_is_named(value: str, words: str) -> None:
    with pytest.raises(StartupError, match=words):
        load_settings(request_limits=value)


@pytest.mark.parametrize(
    "value", ["https://a.example, http://localhost:3000", ("https://a.example", "http://localhost:3000")]
)
def test_origins_are_a_list(value: Any) -> None:
    assert load_settings(cors_origins=value).cors_origins == ("https://a.example", "http://localhost:3000")


@pytest.mark.parametrize("value", ["a.example", "https://a.example/", "https://a.example/chat", "https://"])
def test_an_origin_is_a_scheme_and_a_host(value: str) -> None:
    with pytest.raises(StartupError, match="cors_origins"):
        load_settings(cors_origins=value)


def test_children_get_the_same_settings() -> None:
    settings = load_settings(
        request_limits='{"max_prompt_size": "1MiB"}', api_keys="keys.yaml", max_itl=20, cors_origins="*"
    )
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


OF_A_SERVICE = {
    "PACELINE_SERVICE_HOST": "10.0.0.7",
    "PACELINE_SERVICE_PORT": "80",
    "PACELINE_SERVICE_PORT_HTTP": "80",
    "PACELINE_PORT": "tcp://10.0.0.7:80",
    "PACELINE_PORT_80_TCP": "tcp://10.0.0.7:80",
    "PACELINE_PORT_80_TCP_PROTO": "tcp",
    "PACELINE_PORT_80_TCP_PORT": "80",
    "PACELINE_PORT_80_TCP_ADDR": "10.0.0.7",
}
"""What Kubernetes gives to each pod beside a Service with the name "paceline"."""


def test_an_empty_variable_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files pass on variables that nobody has set."""
    monkeypatch.setenv("PACELINE_API_KEYS", "")
    monkeypatch.setenv("PACELINE_PORT", "")
    assert (load_settings().api_keys, load_settings().port) == (None, 8000)


def test_variables_that_kubernetes_makes_of_a_service_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OF_A_SERVICE.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.replace("PACELINE_", "PACELINE_GPU_"), value)  # of a Service "paceline-gpu"
    assert load_settings().port == 8000


@pytest.mark.parametrize("name", ["PACELINE_MAX_QEUE", "PACELINE_SERVICE", "PACELINE_PORT_TCP", "PACELINE_GPU_PORT"])
def test_other_variables_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "80")
    with pytest.raises(StartupError, match=f"unknown environment variable {name}\\b"):
        load_settings()


def test_yaml_takes_off_for_false(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "paceline.yaml"
    file.write_text("speculate: off\n")
    monkeypatch.setenv("PACELINE_CONFIG", str(file))
    assert load_settings().speculate == "off"


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ("sql=/sql,", "lora: Value error, '' is not NAME=FOLDER"),
        (["=/sql"], "'=/sql' is not NAME=FOLDER"),
        ({"sql": None}, "sql has no folder"),
    ],
)
def test_an_adapter_has_a_name_and_a_folder(lora: Any, words: str) -> None:
    with pytest.raises(StartupError, match=words):
        load_settings(lora=lora)


def test_models_have_the_service_s_settings_and_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    named = load_settings(takes_several=True, model=["a=embedded", "b=/x/y.gguf"], block_size=32, idle_timeout=5)
    own = named.of_model("b")
    assert (own.model, own.served_model_name, own.block_size, own.memory_share) == ("/x/y.gguf", "b", 32, 0.5)
    assert own.models == {}
    config = tmp_path / "config.yaml"
    config.write_text("models: {a: embedded, b: {model: /x, block_size: 8, memory_share: 0.25}}")
    monkeypatch.setenv("PACELINE_CONFIG", str(config))
    from_file = load_settings(takes_several=True)
    assert [from_file.of_model(name).block_size for name in "ab"] == [16, 8]
    assert [from_file.of_model(name).memory_share for name in "ab"] == [0.75, 0.25]
    assert load_settings(takes_several=True, model=["embedded"], models=None).model == "embedded"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": ["a=embedded", "b"]}, "'b' is not NAME=MODEL"),
        ({"model": ["a=embedded", "a=/x"]}, "a name occurs twice"),
        ({"models": {"a": {"model": "/x", "port": 1}}}, "models: a: port: not a setting of one model"),
        ({"models": {"a": {"block_size": 8}}}, "models: a: model: it is missing"),
        ({"models": {"a": {"model": "/x", "block_size": 0}}}, "models: a: block_size"),
        ({"models": {"a": "/x"}, "lora": ["l=/y"]}, "lora: with several models"),
        ({"model": ["embedded"], "idle_timeout": 5}, "idle_timeout: only models with names"),
        (
            {"models": {"a": {"model": "/x", "memory_share": 0.8}, "b": "/y"}, "memory_share": 0.5},
            "memory_share: the models' shares are 1.3",
        ),
    ],
)
def test_models_that_do_not_go_together_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(StartupError, match=re.escape(words)):
        load_settings(takes_several=True, **given)


def test_other_commands_refuse_several_models() -> None:
    with pytest.raises(StartupError, match="models: several models are for `paceline serve`"):
        load_settings(model=["a=embedded"])
