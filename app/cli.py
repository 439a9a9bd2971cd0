"""The command line: `paceline serve`, `generate`, `chat`, and what else is told by `paceline --help`."""

import inspect
import os
import sys
from collections.abc import Collection
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from paceline_bench.command import bench

from .errors import EXIT_STARTUP_ERROR, PacelineError, StartupError
from .settings import (
    GROUPS,
    AdapterSettings,
    CacheSettings,
    ModelSettings,
    RequestLimits,
    SchedulerSettings,
    load_settings,
    shown_default,
)
from .tenants import digest_of, new_key
from .version import __version__

cli = typer.Typer(
    name="paceline",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


_OF_AN_ENGINE = (ModelSettings, CacheSettings, SchedulerSettings)
"""Settings of commands that start one without a server."""
_OF_QUALITY = ("model_impl", "attention_backend", "dtype", "kv_dtype", "quantization", "device", "cpu_threads")
"""Settings that change what a model computes."""
_METAVARS: dict[Any, str] = {int: "INTEGER", float: "NUMBER", ByteSize: "SIZE", RequestLimits: "JSON"}


def _option(name: str, field: FieldInfo, group: str) -> inspect.Parameter:
    """A command-line option for a setting. Its value is None if it is not given, so that weaker sources count."""
    flag = name.replace("_", "-")
    is_switch = field.annotation is bool
    names = f"--{flag}/--no-{flag}" if is_switch else f"--{flag}"
    default = shown_default(field)  # "auto" is explained in the description
    option = typer.Option(
        names,
        help=field.description if default == "auto" else f"{field.description} (default: {default})",
        metavar=None if is_switch else _metavar(field.annotation),
        rich_help_panel=group,
        show_default=False,
    )
    is_repeated = name == "model" or get_origin(field.annotation) is dict
    kind: Any = bool if is_switch else list[str] if is_repeated else str
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _metavar(annotation: Any) -> str:
    """What help shows as the value of an option: its choices, or its type. `annotation` may be optional."""
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    if get_origin(annotation) is dict:
        return "NAME=FOLDER"
    if get_origin(annotation) is Literal:
        return "|".join(kinds)
    return _METAVARS.get(kinds[0] if kinds else annotation, "TEXT")


def _with_settings(command: Any, groups: tuple[type, ...], names: Collection[str] | None = None) -> Any:
    """Give a command one option for each setting of these groups. The command gets them as keyword arguments.

    `names`: the only settings that are meant; None: all of them.
    """
    own = list(inspect.signature(command).parameters.values())[:-1]
    options = [
        _option(name, field, group.__doc__ or "")
        for group in groups
        for name, field in group.model_fields.items()  # type: ignore[attr-defined]
        if names is None or name in names
    ]
    command.__signature__ = inspect.Signature([*own, *options])
    return command


def serve(**flags: Any) -> None:
    """Serve a model over HTTP.

    Every option can also be set as PACELINE_<OPTION> in the environment, or in a YAML file that PACELINE_CONFIG names.
    See docs/configuration.md.
    """
    from .supervisor.serve import serve as run

    sys.exit(run(load_settings(takes_several=True, **flags)))


def generate(
    prompt: Annotated[str, typer.Argument(help="the user's message; with --raw, the text to continue; -: stdin")],
    max_tokens: Annotated[int, typer.Option(help="most tokens to generate")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the most probable token")] = 0.0,
    raw: Annotated[bool, typer.Option("--raw", help="continue the prompt as it is, without the chat template")] = False,
    log_level: Annotated[str, typer.Option(help="the least severe lines to log")] = "error",
    **flags: Any,
) -> None:
    """Write one answer, without a server. What a model thinks before it goes to stderr."""
    from .llm.llm import LLM

    prompt = sys.stdin.read() if prompt == "-" else prompt
    fields = {"max_tokens": max_tokens, "temperature": temperature}
    with LLM(progress=False, log_level=log_level, **flags) as llm:
        if not raw and not llm.has_chat_template:
            raise StartupError("the model has no chat template: with --raw it continues the prompt as it is")
        pieces = llm.stream(prompt, fields) if raw else llm.stream_chat([{"role": "user", "content": prompt}], fields)
        for piece in pieces:
            print(piece.reasoning, end="", flush=True, file=sys.stderr)
            print(piece.text, end="", flush=True)
    print()


def chat(
    url: Annotated[
        str | None, typer.Argument(help="a server with OpenAI's API; without one, an engine is started for the chat")
    ] = None,
    system: Annotated[str | None, typer.Option(help="what the model is told before the chat")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the most probable token")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="most tokens of an answer")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar=["PACELINE_API_KEY", "OPENAI_API_KEY"], help="of the server", show_envvar=True)
    ] = None,
    **flags: Any,
) -> None:
    """Talk to a model in the terminal."""
    from .terminal.chat import chat as talk
    from .terminal.sources import Server, Source

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise StartupError("chat: this is no terminal; paceline generate writes one answer to any file")
    fields = {"temperature": temperature, "max_tokens": max_tokens}
    source: Source
    if url is None:
        from .terminal.own_engine import OwnEngine

        source = OwnEngine(**{name: value for name, value in flags.items() if value not in (None, [])})
    else:
        model = next(iter(flags.pop("model") or []), None)
        if given := [name for name, value in flags.items() if value not in (None, [])]:
            raise StartupError(f"{given[0]}: the server at {url} has settings of its own")
        source = Server(url, api_key, model)
    talk(source, {name: value for name, value in fields.items() if value is not None}, system)


def batch(
    source: Annotated[Path, typer.Argument(metavar="IN", help="lines of requests, in the form of OpenAI's batches")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="answers are added to it; those that it has are kept")],
    ordered: Annotated[bool, typer.Option("--ordered", help="write answers in the order of the requests")] = False,
    **flags: Any,
) -> None:
    """Answer the requests of a file, without a server. A run that was broken off goes on.

    See docs/batches.md.
    """
    from .batch import run_batch

    given = {name: value for name, value in flags.items() if value not in (None, [])}
    print(run_batch(source, target, ordered, **given), file=sys.stderr)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Say what this machine is good for: cores, instructions, GPUs, memory and its measured speed, and what fits."""
    from .doctor import doctor as run

    run(as_json)


def check_model(
    model: Annotated[str, typer.Argument(help="a folder, a GGUF file, a hub id, or 'embedded'")],
) -> None:
    """Show whether and how a model would run, and compare its results with those of transformers."""
    os.environ["TQDM_DISABLE"] = "1"  # transformers has a bar for each step of loading
    from .check_model import check

    sys.exit(0 if check(model) else 1)


def quality(
    model: Annotated[str, typer.Argument(help="a folder, a GGUF file, a hub id, or 'embedded'")],
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="compare with this model, in plain numbers")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="measure on this text; default: prose about Paceline")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write all figures here")] = None,
    **flags: Any,
) -> None:
    """Measure a model's perplexity over a text, and how far it is from another model, such as itself unquantized.

    See docs/models.md#quality.
    """
    from .quality import measure

    measure(model, against, text, json_file, **flags)


def quantize(
    model: Annotated[str, typer.Argument(help="a folder or a hub id, with plain weights")],
    out: Annotated[Path, typer.Argument(help="the folder to write: a new or an empty one")],
    to: Annotated[Literal["int8", "int4", "fp8"], typer.Option("--format", help="what weights are rounded to")],
) -> None:
    """Write a model with rounded weights, which Paceline, vLLM and transformers read.

    See docs/models.md#writing-quantized-weights.
    """
    from .quantize import quantize as run

    print(run(model, out, to))


def distill(
    teacher: Annotated[str, typer.Option(metavar="MODEL", help="a folder, a GGUF file, a hub id, or 'embedded'")],
    prompts: Annotated[Path, typer.Option(metavar="FILE", help='lines of {"prompt": ...} or {"messages": [...]}')],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="a new folder, or that of a run that was broken off")],
    kind: Annotated[
        Literal["student", "head"],
        typer.Option(help="student: a model of its own; head: a layer that guesses tokens for the teacher"),
    ] = "student",
    layers: Annotated[int | None, typer.Option(help="layers of a student; auto: a fifth of the teacher's")] = None,
    answers: Annotated[
        int | None, typer.Option(min=1, help="answers to each prompt; auto: 1 for a student, 3 for a head")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="most minutes of training; auto: until data is used up")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="most tokens of an answer")] = 256,
    temperatures: Annotated[str, typer.Option(help="of the teacher's answers, in turn")] = "0,0.7,1",
    seed: Annotated[int, typer.Option(help="of everything that is random")] = 0,
    **flags: Any,
) -> None:
    """Train a small model, or a draft head, to draw the tokens that a large model draws, on prompts of one kind.

    See docs/models.md#distillation.
    """
    from .distill.command import distill as run
    from .distill.task import Task
    from .distill.training import BATCH_TOKENS, Recipe

    heats = _temperatures(temperatures)
    if kind == "head" and layers is not None:
        raise StartupError("--layers: a head has none")
    recipe = Recipe(seed=seed, minutes=minutes, batch_tokens=BATCH_TOKENS[kind])
    repeats = answers or (3 if kind == "head" else 1)
    run(Task(kind, teacher, prompts, out, layers, max_tokens, heats, repeats, recipe), **flags)


def _temperatures(text: str) -> list[float]:
    try:
        heats = [float(part) for part in text.split(",")]
    except ValueError:
        heats = []
    if not heats or not all(0 <= heat <= 2 for heat in heats):
        raise StartupError(f"--temperatures: {text} is not a list of numbers from 0 to 2, such as 0,0.7,1")
    return heats


def hash_key(
    from_stdin: Annotated[
        bool, typer.Option("--stdin", help="read a key from stdin instead of making a new one")
    ] = False,
) -> None:
    """Make an API key, and print it with the digest that goes into the file of --api-keys."""
    key = sys.stdin.readline().strip() if from_stdin else new_key()
    if not key:
        raise StartupError("hash-key: there is no key on stdin")
    if not from_stdin:
        print(f"key     {key}")
    print(f"digest  {digest_of(key)}")


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"paceline {__version__}")
        raise typer.Exit


@cli.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print Paceline's version.")
    ] = False,
) -> None:
    """An inference server for language models with an OpenAI-compatible API."""


cli.command()(_with_settings(serve, GROUPS))
cli.command()(_with_settings(generate, _OF_AN_ENGINE))
cli.command()(_with_settings(chat, _OF_AN_ENGINE))
cli.command()(_with_settings(batch, (*_OF_AN_ENGINE, AdapterSettings)))
cli.command()(doctor)
cli.command()(check_model)
cli.command()(_with_settings(quality, _OF_AN_ENGINE, _OF_QUALITY))
cli.command()(quantize)
cli.command()(_with_settings(distill, _OF_AN_ENGINE, _OF_QUALITY))
cli.command()(bench)
cli.command()(hash_key)


def main() -> None:
    """Run the command line. An error is printed as one line; the exit code is 2 if the command cannot start, else 1."""
    try:
        cli()
    except PacelineError as error:
        print(f"paceline: {error}", file=sys.stderr)
        sys.exit(EXIT_STARTUP_ERROR if isinstance(error, StartupError) else 1)


if __name__ == "__main__":
    main()
