"""Every setting of the service, in groups by who reads them.

A value comes from, strongest first: a command-line flag, a `PACELINE_*` environment variable, the YAML file that
`PACELINE_CONFIG` names, the default here. Unknown keys are refused. Settings are frozen; "auto" (None) values that
depend on the model or the machine are resolved by `app.worker.resolve` and `limits`, which log what they chose and why.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, HttpUrl, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from app.errors import StartupError

ENV_PREFIX = "PACELINE_"


def cache_folder() -> Path:
    """Where Paceline keeps what it can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline"


class ModelSettings(BaseModel):
    """Model"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("embedded", description="a folder, a GGUF file, a hub id, or 'embedded' (SmolLM2-135M-Instruct)")
    served_model_name: str | None = Field(None, description="the name that clients use; the model's own by default")
    model_impl: Literal["auto", "decoder", "generic"] = Field(
        "auto", description="Paceline's own decoder, or transformers' model behind Paceline's attention"
    )
    load_format: Literal["auto", "dummy"] = Field(
        "auto", description="dummy: random weights instead of the checkpoint's, for benchmarks"
    )
    attention_backend: Literal["auto", "triton", "cpu", "torch"] = Field(
        "auto", description="whose kernels attend; auto: the device's own, torch where there are none"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of weights and KV cache; auto: the checkpoint's, as far as the device is good at it"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if there is one")
    cpu_threads: int | None = Field(None, ge=1, description="threads of a forward pass on the CPU; auto: the cores")
    max_model_len: int | None = Field(
        None, ge=2, description="most tokens of a request, prompt and output; auto: what the model was made for"
    )
    worker: Literal["model", "echo"] = Field(
        "model", description="echo: no model, repeats the prompt at full speed; for testing clients and the front end"
    )


class CacheSettings(BaseModel):
    """KV cache"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block_size: int = Field(16, ge=1, le=256, description="tokens in a KV block")
    num_kv_blocks: int | None = Field(None, ge=2, description="KV blocks; auto: as many as the memory holds")
    kv_cache_memory: ByteSize | None = Field(None, description="memory for KV blocks, such as 4GiB; auto: see the log")
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of the GPU's memory to use, for weights, activations and KV blocks"
    )
    prefix_caching: bool = Field(True, description="reuse the KV blocks of equal prompt beginnings")


class SchedulerSettings(BaseModel):
    """Scheduler"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_num_seqs: int | None = Field(
        None, ge=1, le=4096, description="requests in one step; auto: 64 on CPU, 256 on GPU"
    )
    max_num_batched_tokens: int | None = Field(
        None, ge=1, description="tokens in one step; auto: 512 on CPU, 8192 on GPU"
    )
    max_itl: float | None = Field(
        None, gt=0, description="milliseconds between a stream's tokens that prefills may not exceed; auto: 200, GPU 50"
    )
    overlap: bool = Field(True, description="prepare a step while the one before runs; off for finding faults")


class RequestLimits(BaseModel):
    """Sizes of a request's parts; a request beyond one of them is refused by a 400 that names it"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_items: int = Field(
        65536, ge=1, description="elements of all lists and objects in a body, token ids of prompts not counted"
    )
    max_messages: int = Field(4096, ge=1, description="messages of a chat")
    max_prompt_size: ByteSize = Field(ByteSize(8 * 2**20), description="text of a prompt")
    max_stop: int = Field(4, ge=0, description="stop strings")
    max_logit_bias: int = Field(1024, ge=0, description="tokens in logit_bias")
    max_inputs: int = Field(8192, ge=1, description="inputs of a call to an encoder")
    max_tools: int = Field(128, ge=0, description="tools")
    max_grammar_size: ByteSize = Field(ByteSize(256 * 2**10), description="a schema, regular expression or grammar")


def _from_json(value: Any) -> Any:
    """Flags and environment variables give a nested setting as JSON text, the YAML file as a mapping."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


class ServerSettings(BaseModel):
    """Server"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0: any free one")
    api_workers: int = Field(1, ge=1, le=64, description="processes that do HTTP and text, on one socket")
    max_queue: int = Field(1024, ge=0, description="requests that may wait beyond those running; then 429")
    max_body_size: ByteSize = Field(ByteSize(16 * 2**20), description="largest request body; then 413")
    max_n: int = Field(128, ge=1, description="largest n of a request")
    max_logprobs: int = Field(20, ge=0, description="largest logprobs and top_logprobs of a request")
    request_limits: Annotated[RequestLimits, NoDecode, BeforeValidator(_from_json)] = Field(
        RequestLimits(), description='sizes of a request\'s parts, as JSON such as {"max_tools": 256}'
    )
    client_timeout: float = Field(
        30.0,
        gt=0,
        description="seconds that a client has to send its headers, to send its body, and to read what it was sent",
    )
    keepalive_timeout: int = Field(75, ge=1, description="seconds that an idle HTTP connection is kept open")
    max_stored_bytes: ByteSize = Field(
        ByteSize(64 * 2**20),
        description="memory for stored responses, and as much again for resumable streams; 0 stores no responses",
    )
    tool_parser: Literal["auto", "hermes", "llama3_json", "mistral", "pythonic"] = Field(
        "auto", description="how the model writes tool calls; auto: as its chat template shows"
    )
    reasoning_parser: Literal["auto", "think", "none"] = Field(
        "auto", description="think: text in <think> is reasoning_content; auto: if the chat template knows the tag"
    )
    trust_request_chat_template: bool = Field(
        False, description="let requests bring their own chat_template: a program that can take time and memory"
    )
    log_format: Literal["console", "json"] = Field("console", description="form of the log lines on stderr")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line to log")
    otlp_traces_endpoint: HttpUrl | None = Field(
        None,
        description="where traces go: OTLP over HTTP, such as http://collector:4318/v1/traces; auto: there are none",
    )


class ReliabilitySettings(BaseModel):
    """Reliability"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step_timeout: float = Field(
        60.0,
        gt=0,
        description="seconds without a sign of life after which a child counts as hung, and is started again",
    )
    max_restarts: int = Field(
        5,
        ge=0,
        description="times in a row that a child is started again without getting anywhere; then the service ends",
    )
    resume_window: float = Field(
        60.0,
        ge=0,
        description="seconds that a resumable stream waits for its client; 0: there are none",
    )
    max_queue_tokens: int | None = Field(
        None, ge=1, description="prompt tokens from which on waiting requests fill the queue; auto: no limit"
    )
    request_timeout: float | None = Field(
        None, gt=0, description="seconds that a request may take, waiting included; auto: as long as it takes"
    )
    drain_timeout: float = Field(30.0, ge=0, description="seconds that open requests get to end after SIGTERM")


class AccessSettings(BaseModel):
    """Access"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_keys: str | None = Field(
        None, description="a file of tenants and their API keys, or its content as JSON; auto: no key is needed"
    )
    public_metrics: bool = Field(False, description="with api_keys: give /metrics to who has no key, too")


class Settings(
    ModelSettings, CacheSettings, SchedulerSettings, ServerSettings, ReliabilitySettings, AccessSettings, BaseSettings
):
    """All of the service's settings; each part of the service takes the group it reads."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then environment, then the YAML file that $PACELINE_CONFIG names. StartupError if it is broken."""
        chain = [init_settings, env_settings]
        if config := os.environ.get(f"{ENV_PREFIX}CONFIG"):
            try:
                chain.append(YamlConfigSettingsSource(settings_cls, Path(config)))
            except Exception as error:  # of the YAML library, of Python, or of what makes settings of what it read
                reason = " ".join(str(error).split())
                raise StartupError(f"config: {config} is not a YAML file of settings: {reason}") from error
        return tuple(chain)


GROUPS: tuple[type[BaseModel], ...] = (
    ModelSettings,
    CacheSettings,
    SchedulerSettings,
    ServerSettings,
    ReliabilitySettings,
    AccessSettings,
)


def shown_default(field: FieldInfo) -> str:
    """A setting's default as help and documentation show it."""
    if field.default is None:
        return "auto"
    if isinstance(field.default, BaseModel):
        return "see docs/configuration.md"
    if isinstance(field.default, ByteSize):
        return field.default.human_readable().replace(".0", "")
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def load_settings(**flags: Any) -> Settings:
    """Settings from `flags` (None: not given), environment and YAML file.

    Raises StartupError that names each key that is unknown or has an unfit value.
    """
    known = {f"{ENV_PREFIX}{name.upper()}" for name in (*Settings.model_fields, "config")}
    if unknown := sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known):
        raise StartupError(f"unknown environment variable {', '.join(unknown)}; see paceline serve --help")
    config = os.environ.get(f"{ENV_PREFIX}CONFIG")
    if config and not Path(config).is_file():
        raise StartupError(f"config: no such file: {config}")
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise StartupError(f"settings: {problems}") from None
