"""The teacher: a model behind Paceline's own engine, in this process."""

import gc
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from ..core.sampling import Logprobs, SamplingParams
from ..core.wire import GenerateCommand, RequestOutput
from ..engine.build import build_engine
from ..settings import Settings
from .answers import TOP, Answer, Question
from .crowd import run_crowd
from .states import StateKeeper

_DIGITS = 5
"""Of log probabilities that are kept. Rounding in bfloat16 is a thousand times coarser."""


class Teacher:
    """Answers questions, and judges texts of others."""

    def __init__(
        self, settings: Settings, folder: Path, eos_token_ids: frozenset[int], keeper: StateKeeper | None = None
    ) -> None:
        """Load the model in a folder. Raises StartupError. `keeper`: is to look on at its hidden states."""
        self._engine, self.ready = build_engine(settings, folder)
        worker: Any = self._engine.worker
        self.hidden_size: int = worker.model.hidden_size
        worker.drafter = keeper
        gc.unfreeze()  # of what has been imported: Triton, which training brings along, complains if it is never freed
        self._eos_token_ids = eos_token_ids
        self._top = min(TOP, self.ready.vocab_size)
        self._ids = count()

    def answer(self, questions: Iterable[Question], max_tokens: int) -> Iterator[Answer]:
        """Answers of up to `max_tokens` tokens, in the order of the questions. An end of text is part of an answer."""
        asked: deque[Question] = deque()

        def commands() -> Iterator[GenerateCommand]:
            for question in questions:
                asked.append(question)
                sampling = SamplingParams(
                    max_tokens=max_tokens,
                    seed=question.seed,
                    temperature=question.temperature,
                    stop_token_ids=self._eos_token_ids,
                    logprobs=self._top,
                )
                yield self._command(question.prompt, sampling)

        for output in self._run(commands()):
            yield _answer(asked.popleft(), output.token_ids, output.logprobs)

    def judge(self, texts: Sequence[tuple[Question, list[int]]]) -> list[Answer]:
        """The teacher's distributions along answers that somebody else has given, of one token or more each."""
        sampling = SamplingParams(max_tokens=0, seed=0, prompt_logprobs=self._top)
        outputs = self._run(self._command(question.prompt + tokens, sampling) for question, tokens in texts)
        return [
            _answer(question, tokens, output.prompt_logprobs[-len(tokens) :])
            for (question, tokens), output in zip(texts, outputs, strict=True)
        ]

    def _command(self, token_ids: list[int], sampling: SamplingParams) -> GenerateCommand:
        return GenerateCommand(
            request_id=str(next(self._ids)), prompt_token_ids=token_ids, sampling=sampling, arrived_at=time.monotonic()
        )

    def _run(self, commands: Iterator[GenerateCommand]) -> Iterator[RequestOutput]:
        return run_crowd(self._engine, commands, self.ready.max_num_seqs)


def _answer(question: Question, tokens: list[int], logprobs: Sequence[Logprobs]) -> Answer:
    """`logprobs`: of each token, first its own, then those of the most probable ones."""
    top = [each.logprobs[1:] for each in logprobs]
    return Answer(
        question=question,
        tokens=tokens,
        top_ids=[each.token_ids[1:] for each in logprobs],
        top_logprobs=[[round(value, _DIGITS) for value in values] for values in top],
        rest=[round(max(0.0, 1 - math.fsum(map(math.exp, values))), _DIGITS + 2) for values in top],
    )
