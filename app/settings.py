"""Every setting of the service, in groups by the parts that read them.

The value of a setting is its command-line flag, else the environment variable `PACELINE_<NAME>`, else the key of the
YAML file that `PACELINE_CONFIG` names, else the default. Unknown keys are refused. Settings are frozen. Values that are
"auto" (None) are resolved by `app.worker.resolve` and `app.worker.limits`, which log what they chose and why
(docs/architecture.md#frozen-settings). docs/configuration.md is generated from this file.
"""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, HttpUrl, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .core.nearest import did_you_mean
from .errors import StartupError
from .setting_sources import read_sources


def _off_in_yaml(value: Any) -> Any:
    """YAML takes the word off for False."""
    return "off" if value is False else value


def cache_folder() -> Path:
    """The folder for files that Paceline can make again: converted models and compiled kernels."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline"


MODEL_NAME = r"^[\w.:/@+-]{1,128}$"


class ModelSettings(BaseModel):
    """Model"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("embedded", description="a folder, a GGUF file, a hub id, or 'embedded' (SmolLM2-135M-Instruct)")
    served_model_name: str | None = Field(None, description="name of the model for clients; auto: its own name")
    model_impl: Literal["auto", "decoder", "generic"] = Field(
        "auto",
        description="decoder: Paceline's own; generic: transformers' model; auto: the decoder if it runs the model",
    )
    task: Literal["auto", "embed", "score"] = Field(
        "auto",
        description="embed: a model that was trained to write or to fill gaps gives embeddings; score: a model that "
        "writes ranks texts, by how probable its yes is; auto: what the model's files say",
    )
    load_format: Literal["auto", "dummy"] = Field(
        "auto", description="dummy: random weights instead of the checkpoint's, for benchmarks"
    )
    attention_backend: Literal["auto", "triton", "cpu", "torch"] = Field(
        "auto", description="kernels of attention; auto: those made for the device, else torch"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="type of plain weights and activations; auto: the checkpoint's, if the device computes it well",
    )
    quantization: Literal["auto", "none", "int8", "int4", "fp8"] = Field(
        "auto",
        description="of weights; auto: as they are stored; none: to plain numbers; others: rounded at the start",
    )
    batch_invariant: bool = Field(
        False,
        description="compute a token alike in any batch, so that a text depends on its request alone; slower on a GPU. "
        "On a CPU quantized weights do so in any case, and others are refused",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if there is a GPU")
    cpu_threads: int | None = Field(
        None, ge=1, description="threads of a forward pass on the CPU; auto: one for each core"
    )
    max_model_len: int | None = Field(
        None, ge=2, description="most tokens of a request, prompt and output together; auto: the model's context length"
    )
    images: bool = Field(
        True, description="read images in chats, if the model does; false: only its part on text is loaded"
    )
    worker: Literal["model", "echo"] = Field(
        "model", description="echo: no model; it repeats the prompt at full speed, to test clients and the API"
    )


def _models(value: Any) -> Any:
    """Settings of each model by its name, from NAME=MODEL or NAME=JSON: as those of adapters."""
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, list | tuple):
        parts = [str(given).partition("=") for given in value]
        if wrong := [str(given) for given, part in zip(value, parts, strict=True) if not all(part)]:
            raise ValueError(f"'{wrong[0]}' is not NAME=MODEL")
        if len({name for name, _, _ in parts}) < len(parts):
            raise ValueError("a name occurs twice")
        value = {name: model for name, _, model in parts}
    if not isinstance(value, dict):
        return value
    return {name: {"model": given} if isinstance(given, str) else given for name, given in value.items()}


class SeveralModelsSettings(BaseModel):
    """Several models"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Annotated[dict[Annotated[str, Field(pattern=MODEL_NAME)], dict[str, Any]], BeforeValidator(_models)] = (
        Field(
            {},
            description="a model, as NAME=MODEL, that requests choose by this name; in the file also a mapping of its "
            "own settings; --model NAME=MODEL, repeated, says the same",
        )
    )
    load_models: Literal["start", "asked"] = Field(
        "start", description="when the models are loaded: all at the start, or each when it is first asked for"
    )
    idle_timeout: float | None = Field(
        None,
        gt=0,
        description="seconds without requests after which a model's engine ends, until it is asked for; auto: never",
    )
    memory_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="of the memory that a model could have alone; auto: equal parts of what other models leave",
    )


class CacheSettings(BaseModel):
    """KV cache"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kv_dtype: Literal["auto", "int8", "fp8"] = Field(
        "auto", description="type of K and V; auto: dtype; int8 on a CPU and fp8 on a GPU hold about twice the tokens"
    )
    block_size: int = Field(16, ge=1, le=256, description="tokens in a KV block")
    num_kv_blocks: int | None = Field(None, ge=2, description="number of KV blocks; auto: as many as fit the memory")
    kv_cache_memory: ByteSize | None = Field(
        None, description="memory for KV blocks, such as 4GiB; auto: decided at the start, and logged"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of the GPU's memory for weights, activations and KV blocks"
    )
    host_kv_cache: ByteSize = Field(
        ByteSize(0),
        description="memory of the host for KV blocks that a GPU has no more room for, such as 64GiB, which come back "
        "when they are wanted; on a CPU, raise kv_cache_memory instead. 0: none",
    )
    prefix_caching: bool = Field(True, description="reuse the KV blocks of equal prompt beginnings")


class SchedulerSettings(BaseModel):
    """Scheduler"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_num_seqs: int | None = Field(
        None, ge=1, le=4096, description="most requests in one step; auto: 64 on a CPU, 256 on a GPU"
    )
    max_num_batched_tokens: int | None = Field(
        None, ge=1, description="most tokens in one step; auto: 512 on a CPU, 8192 on a GPU"
    )
    max_itl: float | None = Field(
        None,
        gt=0,
        description="milliseconds that prefills may put between a stream's tokens; auto: 200 on a CPU, 50 on a GPU",
    )
    speculate: Annotated[Literal["auto", "ngram", "draft", "off"], BeforeValidator(_off_in_yaml)] = Field(
        "auto",
        description="guess the next tokens and check several in a step, while few requests run: the text is the same; "
        "ngram: from the request's text and others of its tenant; draft: by draft_model; auto: draft if there is "
        "such a model, else ngram",
    )
    draft_model: str | None = Field(
        None, description="a smaller model with the same vocabulary, as for model, or a draft head; auto: none"
    )

    overlap: bool = Field(True, description="plan a step while the one before it runs; turn it off to find faults")

    @property
    def drafts_by_model(self) -> bool:
        """Whether the draft model makes the drafts."""
        return self.draft_model is not None and self.speculate in ("auto", "draft")


def _absolute(path: Path | None) -> Path | None:
    """Other processes of the service may have another working directory."""
    return None if path is None else path.expanduser().absolute()


def _adapters(value: Any) -> Any:
    """Names and absolute folders of adapters, from NAME=FOLDER: several from flags, with commas from a variable."""
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, list | tuple):
        parts = [str(given).partition("=") for given in value]
        if wrong := [str(given) for given, part in zip(value, parts, strict=True) if not all(part)]:
            raise ValueError(f"'{wrong[0]}' is not NAME=FOLDER")
        if len({name for name, _, _ in parts}) < len(parts):
            raise ValueError("a name occurs twice")
        value = {name: folder for name, _, folder in parts}
    if not isinstance(value, dict):
        return value
    if wrong := [str(name) for name, folder in value.items() if not folder]:
        raise ValueError(f"{wrong[0]} has no folder")
    return {name: str(_absolute(Path(str(folder)))) for name, folder in value.items()}


ADAPTER_NAME = MODEL_NAME


class AdapterSettings(BaseModel):
    """Adapters"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora: Annotated[dict[Annotated[str, Field(pattern=ADAPTER_NAME)], str], BeforeValidator(_adapters)] = Field(
        {},
        description="a LoRA adapter, as NAME=FOLDER, that requests choose by its name as their model; may be repeated",
    )
    lora_loading: bool = Field(False, description="load and unload LoRA adapters while the service runs, over HTTP")
    max_loras: int | None = Field(
        None, ge=1, le=1024, description="LoRA adapters at once; auto: those of lora, at least 4 with lora_loading"
    )
    max_lora_rank: int | None = Field(
        None, ge=1, le=512, description="the largest rank of one; auto: of those of lora, at least 16 with lora_loading"
    )


class RequestLimits(BaseModel):
    """The largest sizes of a request's parts. A request beyond one is refused with a 400 that names the limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_items: int = Field(
        65536, ge=1, description="elements of all lists and objects in a body, token ids of prompts not counted"
    )
    max_messages: int = Field(4096, ge=1, description="messages of a chat")
    max_prompt_size: ByteSize = Field(ByteSize(8 * 2**20), description="text of a prompt")
    max_stop: int = Field(32, ge=0, description="stop strings")
    max_logit_bias: int = Field(1024, ge=0, description="tokens in logit_bias")
    max_inputs: int = Field(8192, ge=1, description="inputs of a call to an encoder, or to a model that forecasts")
    max_numbers: int = Field(
        2**20, ge=1, description="numbers of a forecast's series, and of its answer; images times labels"
    )
    max_n: int = Field(128, ge=1, description="n, the choices for a prompt; num_samples of a forecast")
    max_logprobs: int = Field(20, ge=0, description="logprobs and top_logprobs")
    max_tools: int = Field(128, ge=0, description="tools")
    max_images: int = Field(32, ge=0, description="images of a chat")
    max_image_size: ByteSize = Field(ByteSize(10 * 2**20), description="the file of an image")
    max_image_pixels: int = Field(40_000_000, ge=1, description="pixels of an image: its width times its height")
    max_audio_seconds: int = Field(3600, ge=1, description="length of a sound")
    max_grammar_size: ByteSize = Field(ByteSize(256 * 2**10), description="a schema, regular expression or grammar")


def _from_json(value: Any) -> Any:
    """Parse a nested setting, which flags and environment variables give as JSON; the YAML file gives a mapping."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


def _from_list(value: Any) -> Any:
    """Split a list, which flags and variables give with commas; the YAML file may give a list."""
    return tuple(filter(None, value.replace(" ", "").split(","))) if isinstance(value, str) else value


Origin = Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\s]+)$")]
"""As browsers send it: scheme, host, and the port if it is not the scheme's own; or all of them."""


class ServerSettings(BaseModel):
    """Server"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0: any free port")
    api_workers: int = Field(1, ge=1, le=64, description="processes for HTTP and text, on one socket")
    max_queue: int = Field(
        1024, ge=0, description="most waiting requests, beyond those running; more are refused with 429"
    )
    max_body_size: ByteSize = Field(
        ByteSize(16 * 2**20), description="largest request body; a larger one is refused with 413"
    )
    request_limits: Annotated[RequestLimits, BeforeValidator(_from_json)] = Field(
        RequestLimits(), description='sizes of a request\'s parts, as JSON such as {"max_tools": 256}'
    )
    cors_origins: Annotated[tuple[Origin, ...], BeforeValidator(_from_list)] = Field(
        (), description="sites whose pages may use the API, such as https://chat.example,http://localhost:3000; *: all"
    )
    page: bool = Field(True, description="serve a page at / with a chat and a view of the running batch")
    azure_paths: bool = Field(False, description="serve the paths of Azure OpenAI (/openai/...) as well")
    unknown_fields: Literal["ignore", "refuse"] = Field(
        "ignore",
        description="what becomes of a request's fields that the API does not know; ignored ones are named in the "
        "header X-Ignored-Fields of the answer",
    )
    client_timeout: float = Field(
        30.0,
        gt=0,
        description="seconds that a client has to send its headers, to send its body, and to read what it was sent",
    )
    keepalive_timeout: int = Field(75, ge=1, description="seconds that an idle HTTP connection is kept open")
    max_stored_bytes: ByteSize = Field(
        ByteSize(64 * 2**20),
        description="memory for stored responses, and as much again for resumable streams; 0: no response is stored",
    )
    tool_parser: Literal[
        "auto",
        "command",
        "deepseek_v3",
        "deepseek_v31",
        "deepseek_v32",
        "deepseek_v4",
        "functiongemma",
        "gemma4",
        "glm45",
        "granite",
        "harmony",
        "hermes",
        "kimi_k2",
        "llama3_json",
        "minimax",
        "minimax_m2",
        "mistral",
        "pythonic",
        "qwen3_coder",
        "seed_oss",
    ] = Field("auto", description="format of the model's tool calls; auto: the one that its chat template shows")
    reasoning_parser: Literal["auto", "think", "mistral", "seed_oss", "command", "gemma4", "none"] = Field(
        "auto",
        description="think: text in <think> becomes reasoning_content; mistral: text in [THINK]; others: in these "
        "families' tags; auto: the tags that the chat template shows. tool_parser harmony reads reasoning, too",
    )
    trust_request_chat_template: bool = Field(
        False, description="accept a chat_template in requests: a program that can take time and memory"
    )
    keep_prompts: Annotated[Path | None, AfterValidator(_absolute)] = Field(
        None,
        description="a file to which the prompts of requests are added as token ids, for paceline distill; auto: none",
    )
    log_format: Literal["console", "json"] = Field("console", description="form of the log lines on stderr")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least severe lines to log")
    otlp_traces_endpoint: HttpUrl | None = Field(
        None,
        description="where traces are sent (OTLP over HTTP), such as http://collector:4318/v1/traces; auto: no traces",
    )


class ReliabilitySettings(BaseModel):
    """Reliability"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step_timeout: float = Field(
        60.0,
        gt=0,
        description="seconds without a sign of life after which a process counts as hung and is restarted",
    )
    max_restarts: int = Field(
        5,
        ge=0,
        description="restarts in a row without progress after which the service gives up",
    )
    resume_window: float = Field(
        60.0,
        ge=0,
        description="seconds that a resumable stream is kept without a reader; 0: there are no resumable streams",
    )
    max_queue_tokens: int | None = Field(
        None,
        ge=1,
        description="prompt tokens of waiting requests from which on more are refused with 429; auto: no limit",
    )
    request_timeout: float | None = Field(
        None, gt=0, description="seconds that a request may take, waiting included; auto: no limit"
    )
    drain_timeout: float = Field(30.0, ge=0, description="seconds that open requests get to finish after SIGTERM")


class AccessSettings(BaseModel):
    """Access"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_keys: str | None = Field(
        None, description="a file of tenants and their API keys, or its content as JSON; auto: no key is needed"
    )
    public_metrics: bool = Field(False, description="with api_keys: answer /metrics without a key")


class BatchSettings(BaseModel):
    """Batches"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_folder: Annotated[Path | None, AfterValidator(_absolute)] = Field(
        None, description="a folder for the files of /v1/files and /v1/batches; auto: there are no such paths"
    )
    max_batch_requests: int | None = Field(
        None,
        ge=1,
        description="most requests of batches in flight, for each model; "
        "auto: half of max_num_seqs, so that others find room at once",
    )
    max_batch_lines: int = Field(50_000, ge=1, description="requests of a batch")
    max_file_bytes: ByteSize = Field(ByteSize(200 * 2**20), description="largest file of requests")
    max_tenant_bytes: ByteSize = Field(
        ByteSize(10 * 2**30), description="all files of a tenant, answers included; beyond it nothing more begins"
    )


class Settings(
    ModelSettings,
    SeveralModelsSettings,
    CacheSettings,
    SchedulerSettings,
    AdapterSettings,
    ServerSettings,
    ReliabilitySettings,
    AccessSettings,
    BatchSettings,
):
    """All settings of the service. Each part of the service takes the group that it reads."""

    def of_model(self, name: str) -> "Settings":
        """The settings of one of several models: the service's, but for its own. Raises StartupError."""
        own = self.models[name]
        if foreign := set(own) - _OF_ONE_MODEL:
            raise StartupError(f"models: {name}: {', '.join(sorted(foreign))}: not a setting of one model")
        if "model" not in own:
            raise StartupError(f"models: {name}: model: it is missing")
        common = self.model_dump(exclude={"models", "model"})
        taken = [share for given in self.models.values() if isinstance(share := given.get("memory_share"), float | int)]
        if len(taken) < len(self.models):
            common["memory_share"] = self.memory_share or (1 - sum(taken)) / (len(self.models) - len(taken))
        common["host_kv_cache"] = int(self.host_kv_cache * own.get("memory_share", common["memory_share"] or 1))
        return _validated(common | own | {"served_model_name": name}, f"models: {name}")

    def check_models(self) -> None:
        """Raise StartupError for settings that several models cannot have, or have in common."""
        if not self.models:
            for name in ("load_models", "idle_timeout"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise StartupError(f"{name}: only models with names are put to sleep: --model NAME=MODEL")
            return
        for name in ("model", "served_model_name", "lora", "draft_model", "keep_prompts"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise StartupError(f"{name}: with several models it has to be one of a model's own settings (models)")
        shares = [self.of_model(name).memory_share or 0 for name in self.models]
        if sum(shares) > 1 + 1e-6:
            raise StartupError(
                f"memory_share: the models' shares are {sum(shares):g} together, and not more than 1 is there"
            )


GROUPS: tuple[type[BaseModel], ...] = (
    ModelSettings,
    SeveralModelsSettings,
    CacheSettings,
    SchedulerSettings,
    AdapterSettings,
    ServerSettings,
    ReliabilitySettings,
    AccessSettings,
    BatchSettings,
)


_OF_ONE_MODEL = {
    *(
        name
        for group in (ModelSettings, CacheSettings, SchedulerSettings, AdapterSettings)
        for name in group.model_fields
    ),
    *(
        "load_models",
        "idle_timeout",
        "memory_share",
        "max_queue",
        "max_queue_tokens",
        "tool_parser",
        "reasoning_parser",
    ),
    *("keep_prompts",),
} - {"served_model_name"}
"""Settings that each of several models may have for itself."""


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
    if isinstance(field.default, tuple | dict):
        return ",".join(field.default) or "none"
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def load_settings(*, takes_several: bool = False, **flags: Any) -> Settings:
    """Settings from flags, environment and YAML file. A flag that is None was not given.

    takes_several: whether the caller knows what to do with several models. Raises StartupError, which names every key
    that is unknown or has a wrong value.
    """
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    models = given.get("model")
    if isinstance(models, list):  # one model, or several with names
        del given["model"]
        given |= {"models": models} if len(models) > 1 or _has_name(models[0]) else {"model": models[0]}
    settings = _validated(read_sources(Settings.model_fields) | given, "settings")
    settings.check_models()
    if settings.models and not takes_several:
        raise StartupError("models: several models are for `paceline serve` and `paceline batch`")
    return settings


def _has_name(model: str) -> bool:
    """Whether it is NAME=MODEL, and no path."""
    return "=" in model and not Path(model).exists()


def _validated(values: dict[str, Any], where: str) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise StartupError(f"{where}: {'; '.join(map(_problem, error.errors()))}") from None


def _problem(error: ErrorDetails) -> str:
    """One of pydantic's errors, for people."""
    *_, name = path = [str(part) for part in error["loc"]]
    message = error["msg"]
    if error["type"] == "extra_forbidden":
        known = Settings.model_fields if len(path) == 1 else RequestLimits.model_fields
        message = f"there is no such setting{did_you_mean(name, known)}"
    elif error["type"] == "literal_error" and isinstance(error["input"], str):
        message += did_you_mean(error["input"], re.findall(r"'([^']*)'", message))
    return f"{'.'.join(path)}: {message}"
