"""Makes questions of prompts: which only serve to measure, and with what luck and temperature each is asked."""

import random
from collections.abc import Sequence

from ..errors import StartupError
from .answers import Question

MEASURED_AT = (0.0, 0.7, 1.0)
"""Temperatures at which prompts that are held out are answered."""
_HELD_OUT = 20
"""One prompt of so many is held out, ..."""
_MOST_HELD_OUT = 24
"""... up to this number: more would take time that training needs."""


def make_questions(
    prompts: Sequence[list[int]], temperatures: Sequence[float], seed: int, repeats: int = 1
) -> list[Question]:
    """`repeats` questions for each prompt that is learnt from, the temperatures in turn; those held out come first.

    Prompts that are equal are held out together. Raises StartupError if there are too few different ones.
    """
    different = sorted({tuple(prompt) for prompt in prompts})
    if len(different) < 2:
        raise StartupError(f"--prompts: {len(different)} different prompts are too few: one has to be held out")
    chance = random.Random(seed)
    held_out = set(chance.sample(different, min(_MOST_HELD_OUT, -(-len(different) // _HELD_OUT))))

    def question(prompt: list[int], temperature: float, held_out: bool) -> Question:
        return Question(prompt=prompt, temperature=temperature, seed=chance.getrandbits(63), held_out=held_out)

    measured = [question(list(prompt), heat, True) for prompt in sorted(held_out) for heat in MEASURED_AT]
    learnt = [prompt for prompt in prompts if tuple(prompt) not in held_out for _ in range(repeats)]
    return measured + [
        question(prompt, temperatures[index % len(temperatures)], False) for index, prompt in enumerate(learnt)
    ]
