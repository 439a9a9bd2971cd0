"""Generates text in one process, without a server. Whoever reads the text drives the engine's loop."""

import secrets
import time
from collections.abc import Iterator

from .checkpoint.folder import ModelFolder
from .checkpoint.source import find_model
from .core.sampling import SamplingParams
from .core.sources import text_source
from .core.wire import GenerateCommand
from .engine.build import build_engine
from .errors import InternalError, StartupError
from .log import configure_logging
from .settings import Settings
from .text.chat_template import ChatTemplate
from .text.output_processor import OutputProcessor, StopConditions
from .text.tokenizer import Tokenizer


def generate_text(settings: Settings, prompt: str, max_tokens: int, temperature: float, raw: bool) -> Iterator[str]:
    """The answer to a prompt, in pieces as they are generated. `raw`: continue the prompt itself, without a template.

    Raises PacelineError.
    """
    configure_logging(settings, process="generate")
    folder = find_model(settings.model, needs_weights=settings.load_format != "dummy")
    core, ready = build_engine(settings, folder)
    tokenizer = Tokenizer(folder)
    token_ids = (
        tokenizer.encode(prompt)
        if raw or ModelFolder(folder).encoder_decoder is not None
        else _chat(ChatTemplate.from_folder(folder, tokenizer), tokenizer, prompt)
    )
    described, source = ModelFolder(folder).encoder_decoder, None
    if described is not None:
        if described.series is not None:
            raise StartupError("the model forecasts series of numbers")
        if described.hears or not 0 < len(token_ids) <= ready.max_source_len:
            what = "sound, not text" if described.hears else f"1 to {ready.max_source_len} tokens, not {len(token_ids)}"
            raise StartupError(f"the model's encoder reads {what}")
        token_ids, source = list(described.beginning), text_source(token_ids)
    room = ready.max_model_len - len(token_ids)
    if not token_ids or room < 1:
        raise StartupError(f"the prompt has {len(token_ids)} tokens; the model takes 1 to {ready.max_model_len - 1}")
    sampling = SamplingParams(
        max_tokens=min(max_tokens, room),
        seed=secrets.randbits(63),
        temperature=temperature,
        stop_token_ids=tokenizer.eos_token_ids,
        rules=None if described is None else described.rules,
    )
    core.add(
        GenerateCommand(
            request_id="prompt",
            prompt_token_ids=token_ids,
            source=source,
            sampling=sampling,
            arrived_at=time.monotonic(),
        )
    )
    processor = OutputProcessor(tokenizer, token_ids, StopConditions())
    while core.has_work:
        for output in core.step().outputs:
            if output.error:
                raise InternalError(output.error)
            yield processor.process(output).text


def _chat(template: ChatTemplate, tokenizer: Tokenizer, prompt: str) -> list[int]:
    return tokenizer.encode_segments(template.render([{"role": "user", "content": prompt}]))
