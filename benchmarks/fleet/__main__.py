"""How near a fleet of sixteen mixed Macs comes to its ideal, simulated.

python -m benchmarks.fleet --tasks 30000 --failures 200 --seed 0 [--no-hedge]
"""

import tempfile
from pathlib import Path

import click
from redis import Redis

from benchmarks.fleet.simulate import Outcome, simulate
from benchmarks.report import Report, print_report
from producer.jobs.redis_server import RedisServer

GOAL, GOAL_WITH_FAILURES = 0.97, 0.93


@click.command(help=__doc__.splitlines()[0] if __doc__ else None)
@click.option("--tasks", default=3000, show_default=True, help="Images and (layer, bits).")
@click.option("--images", type=int, help="How many of them are images.  [default: a twentieth, at most 100]")
@click.option("--failures", default=0, show_default=True, help="Kills, sleeps, GPU errors and absences.")
@click.option("--seed", default=0, show_default=True, help="Of what is left to chance.")
@click.option("--hedge/--no-hedge", default=True, show_default=True, help="Second copies of slow jobs.")
def main(tasks: int, images: int | None, failures: int, seed: int, hedge: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        # Nothing here outlives the program.
        Redis.from_url(server.url).config_set("appendonly", "no")
        outcome = simulate(server.url, tasks=tasks, failures=failures, hedge=hedge, seed=seed, images=images)
    print_report(report_on(outcome))


def report_on(outcome: Outcome) -> Report:
    """Return the figures, the share beside its goal."""
    report = Report(title=f"a fleet on paper: {outcome.tasks} tasks, {outcome.failures} failures")
    report.facts |= {
        "second copies": "on" if outcome.hedge else "off",
        "seed": outcome.seed,
        "makespan: seconds": round(outcome.makespan, 1),
        "ideal: seconds": round(outcome.ideal, 1),
        "tail, no job waits any more: seconds": round(outcome.tail, 1),
        "work lost to sleep and absence": round(outcome.away, 4),
        "work done twice or in vain": round(outcome.twice, 4),
        "tasks given up": outcome.failed,
        "seconds to simulate": round(outcome.real_seconds, 1),
    }
    report.facts["ideal by makespan, by those who were there"] = round(outcome.share_of_those_there, 4)
    goal = GOAL_WITH_FAILURES if outcome.failures else GOAL
    report.at_least("ideal by makespan", outcome.share, goal)
    return report


if __name__ == "__main__":
    main()
