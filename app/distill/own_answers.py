"""Answers that the student gives itself, and the teacher judges.

A student that only reads what the teacher has written never sees its own mistakes (Agarwal et al., "On-Policy
Distillation of Language Models", 2023).
"""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from .answers import Answer
from .teacher import Teacher

_LONGEST = 32
"""Tokens of an own answer: each takes a pass, and the first ones teach as much as later ones."""


def own_answers(
    teacher: Teacher, eos_token_ids: frozenset[int], student: PreTrainedModel, answers: Sequence[Answer], seed: int
) -> list[Answer]:
    """The student's answers to the questions of these, with the teacher's distributions along them."""
    questions = [answer.question for answer in answers]
    longest = max(len(question.prompt) for question in questions)
    inputs = [[0] * (longest - len(question.prompt)) + question.prompt for question in questions]
    masks = [[0] * (longest - len(question.prompt)) + [1] * len(question.prompt) for question in questions]
    config = GenerationConfig(
        max_new_tokens=min(_LONGEST, max(len(answer.tokens) for answer in answers)),
        do_sample=True,
        top_k=0,
        eos_token_id=sorted(eos_token_ids) or None,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        texts = student.generate(  # type: ignore[operator]
            torch.tensor(inputs, device=student.device),
            attention_mask=torch.tensor(masks, device=student.device),
            generation_config=config,
        )
    said = [_up_to_end(row, eos_token_ids) for row in texts[:, longest:].tolist()]
    return teacher.judge(list(zip(questions, said, strict=True)))


def _up_to_end(tokens: list[int], eos_token_ids: frozenset[int]) -> list[int]:
    ends = (index for index, token in enumerate(tokens) if token in eos_token_ids)
    return tokens[: next(ends, len(tokens)) + 1]
