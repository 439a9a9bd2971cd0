"""What drafts of a student or a head are worth: tokens a second of the service's engine with them and without."""

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..core.sampling import SamplingParams
from ..core.wire import GenerateCommand
from ..engine.build import build_engine
from ..engine.core import EngineCore
from ..settings import Settings
from .answers import Question
from .crowd import run_crowd

_CLIENTS = (1, 2, 4, 8)
_ANSWERS = 8
"""Of a round. Each client asks as soon as it has its last answer."""
_MAX_TOKENS = 64
_ROUNDS = 3
"""That count. In the one before them, steps are recorded."""


def measure_speed(settings: Settings, folder: Path, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """By number of clients, what an engine of the model in a folder does. Raises StartupError.

    `settings` name who drafts. With drafts and without, which take turns, the same coldest questions are asked.
    """
    engine, _ = build_engine(settings, folder)
    asked = sorted(questions, key=lambda question: question.temperature)[:_ANSWERS]
    return [_measure(engine, asked, clients) for clients in _CLIENTS]


def _measure(engine: EngineCore, questions: Sequence[Question], clients: int) -> dict[str, Any]:
    """Medians of the rounds, and the engine's own counts of drafts."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    drafted = accepted = 0
    for _ in range(1 + _ROUNDS):
        for drafts, of_way in rates.items():
            tokens, began = 0, time.perf_counter()
            for output in run_crowd(engine, _commands(questions, drafts), clients):
                tokens += len(output.token_ids)
                drafted += output.num_drafted_tokens
                accepted += output.num_accepted_tokens
            of_way.append(tokens / (time.perf_counter() - began))
    without, with_drafts = (statistics.median(of_way[1:]) for of_way in rates.values())
    return {
        "clients": clients,
        "tokens_a_second_without": without,
        "tokens_a_second": with_drafts,
        "times": with_drafts / without,
        "drafted": drafted,
        "accepted": accepted,
    }


def _commands(questions: Sequence[Question], drafts: bool) -> Iterator[GenerateCommand]:
    for index, question in enumerate(questions):
        yield GenerateCommand(
            request_id=str(index),
            prompt_token_ids=question.prompt,
            sampling=SamplingParams(max_tokens=_MAX_TOKENS, seed=question.seed, temperature=question.temperature),
            arrived_at=time.monotonic(),
            max_drafts=None if drafts else 0,
        )
