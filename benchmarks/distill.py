"""Distillation: how often a student or a head draws what its teacher draws, before and after training on one kind of
prompts.

The prompts ask for short explanations; they are made here, of things and readers. Arguments behind `--` go to
`paceline distill`, which keeps answers and the student in the folder `--out`.
"""

import argparse
import json
import random
import subprocess
import sys
from itertools import product
from pathlib import Path

from common import REPOSITORY, write_result

_THINGS = """
a volcano, a glacier, the moon, a rainbow, photosynthesis, gravity, an earthquake, the water cycle, a magnet, a battery,
a bridge, a lighthouse, a library, a museum, a compass, a telescope, a microscope, a computer, the internet, an engine,
bread, cheese, honey, chocolate, tea, coffee, a sandwich, a soup, salt, sugar, a bee, a whale, an owl, a wolf, a spider,
a dolphin, an elephant, a butterfly, a snake, a penguin, a forest, a desert, an island, a river, a waterfall, a city,
a school, a hospital, a bank, a train, a bicycle, an aeroplane, a ship, a car, a clock, a camera, a piano, a violin,
poetry, music, a painting, a theatre, a novel, history, mathematics, chemistry, a vaccine, a bone, the heart, the brain,
sleep, exercise, a friend, a holiday, money, a budget, a contract, an election, a law, a map, a flag, a language, a book
"""
_READERS = ("a child", "a student", "a farmer", "a tourist", "an engineer", "a nurse", "my aunt", "a new neighbour")
_FORMS = (
    "Explain to {reader} in three sentences what {thing} is.",
    "Tell {reader} why {thing} matters.",
    "Describe {thing} for {reader}, in a short paragraph.",
)


def prompts(count: int) -> list[str]:
    """Different ones, in an order that is always the same."""
    things = [thing.strip() for thing in _THINGS.replace("\n", " ").split(",")]
    every = [form.format(thing=thing, reader=reader) for form, thing, reader in product(_FORMS, things, _READERS)]
    return random.Random(0).sample(every, count)


def main() -> None:
    """Distill, and keep what it reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--teacher", default="embedded")
    parser.add_argument("distill", nargs="*", help="flags of paceline distill")
    args = parser.parse_args()
    file = args.out.with_suffix(".jsonl")
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts(args.prompts)))
    command = ["distill", "--teacher", args.teacher, "--prompts", str(file), "--out", str(args.out), *args.distill]
    subprocess.run([sys.executable, "-m", "app.cli", *command], cwd=REPOSITORY, check=True)
    args.out = args.out.name  # the folder is nobody else's
    report = json.loads((file.with_suffix("") / "distill.json").read_text())
    write_result(args, report, "" if report["kind"] == "student" else report["kind"])


if __name__ == "__main__":
    main()
