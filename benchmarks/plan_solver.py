"""How fast plans are solved, and how near the best: FLUX-like, 540 layers with 19 options each.

python -m benchmarks.plan_solver
"""

import time

import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array

from producer.plan.frontier import Frontier
from producer.plan.solver import TOLERANCE, Limit, solve
from shared.metrics import Booleans, Floats

LAYERS, BUDGETS, MODELS = 540, 60, 5
WIDTHS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
SIZES = (3072 * 3072, 3072 * 12288, 3072 * 15360, 3072 * 9216)
"""Weights of layers."""


def problem(seed: int, layers: int) -> tuple[Floats, Floats, Booleans]:
    """Scores and bytes of 18 candidates and of the weight as it is; levels scatter by e^2."""
    rng = np.random.default_rng(seed)
    weights = rng.choice(SIZES, layers).astype(float)[:, None]
    bits = np.array([[width + 32 / group for width in WIDTHS for group in GROUPS]])
    width = np.array([[width for width in WIDTHS for _ in GROUPS]])
    group = np.array([[group for _ in WIDTHS for group in GROUPS]])
    rounding = 4.0**-width * (1 + np.log2(group / 32) / 4) * rng.uniform(0.9, 1.1, (layers, bits.size))
    value = np.exp(rng.normal(0, 2, (layers, 1))) * weights / weights.sum() * rounding
    value = np.column_stack([value, np.zeros(layers)])
    size = np.column_stack([weights * bits / 8, 2 * weights])
    return value, size, np.ones(value.shape, bool)


def by_milp_alone(value: Floats, limit: Limit) -> float:
    """Return the seconds that HiGHS takes for the whole problem, to the same gap."""
    layers, options = value.shape
    one_each = csr_array(
        (np.ones(value.size), (np.repeat(np.arange(layers), options), np.arange(value.size)))
    )
    started = time.perf_counter()
    milp(
        value.ravel() / value.sum(),
        integrality=np.ones(value.size),
        bounds=(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(limit.size.ravel()[None] / limit.most, -np.inf, 1),
        ],
        options={"mip_rel_gap": TOLERANCE, "time_limit": 120},
    )
    return time.perf_counter() - started


def compare(layers: int = LAYERS, models: int = MODELS) -> dict[str, float]:
    """Return seconds and gaps, medians and largest over models."""
    frontiers, rough, times, gaps, alone = [], [], [], [], []
    for seed in range(models):
        value, size, allowed = problem(seed, layers)
        started = time.perf_counter()
        frontier = Frontier(value, size, allowed)
        budgets = np.linspace(frontier.smallest, frontier.largest, BUDGETS + 1)[:-1]
        rough += [frontier.at(budget).solution.gap for budget in budgets]
        frontiers.append(time.perf_counter() - started)
        limit = Limit(size=size, most=size[:, WIDTHS.index(4) * len(GROUPS) + 1].sum())
        started = time.perf_counter()
        gaps.append(solve(value, allowed, limit).gap)
        times.append(time.perf_counter() - started)
        if seed < 2:
            alone.append(by_milp_alone(value, limit))
    return {
        f"frontier of {BUDGETS} budgets, s": float(np.median(frontiers)),
        "its gaps, median": float(np.median(rough)),
        "its gaps, largest": float(np.max(rough)),
        "one plan, s": float(np.median(times)),
        "one plan, largest gap": float(np.max(gaps)),
        "one plan by HiGHS alone, s": float(np.median(alone)),
    }


def main() -> None:
    """Print a line for each figure."""
    for name, figure in compare().items():
        print(f"{name:32}{figure:12.3g}")


if __name__ == "__main__":
    main()
