"""Prints prompts of the grammar as CSV: `python -m training.prompts > producer/demo_prompts.csv`."""

import csv
import random
import sys

from training.grammar import all_scenes

COUNT = 200


def prompts(count: int = COUNT, seed: int = 0) -> list[str]:
    """Different prompts in random order; a quarter of them has a single object."""
    rng = random.Random(seed)
    scenes = list(all_scenes())
    single = [scene.prompt for scene in scenes if len(scene.things) == 1]
    double = [scene.prompt for scene in scenes if len(scene.things) == 2]
    chosen = [*rng.sample(single, count // 4), *rng.sample(double, count - count // 4)]
    rng.shuffle(chosen)
    return chosen


def main() -> None:
    """Write the CSV that is shipped."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["prompt"])
    writer.writerows([prompt] for prompt in prompts())


if __name__ == "__main__":
    main()
