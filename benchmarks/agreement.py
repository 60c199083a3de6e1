"""How far two results agree: `python -m benchmarks.agreement A/results.json B/results.json`.

Meant for a sketch and an exact measurement on the same samples of a trained model.
"""

import argparse
from pathlib import Path

from scipy.stats import spearmanr

from producer.results.results import Results, decode_results

TOP = 10


def scores(results: Results) -> dict[tuple[str, int], float]:
    """Relative error over all samples of every pair that can influence the output."""
    return {
        (pair.layer, pair.bits): error
        for pair in results.measurements
        if not pair.dead and (error := pair.buckets["all"].relative_error) is not None
    }


def main() -> None:
    """Print rank correlation and the overlap of the most sensitive layers, by bit width."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    options = parser.parse_args()
    first, second = (scores(decode_results(path.read_bytes())) for path in (options.first, options.second))
    pairs = sorted(first.keys() & second.keys())
    print(f"{len(pairs)} pairs, Spearman {_spearman(first, second, pairs):.4f}")
    for bits in sorted({bits for _, bits in pairs}):
        some = [pair for pair in pairs if pair[1] == bits]
        tops = [set(sorted(some, key=table.__getitem__)[-TOP:]) for table in (first, second)]
        common = len(tops[0] & tops[1])
        print(
            f"{bits} bits: Spearman {_spearman(first, second, some):.4f}, {common} of the top {TOP} in common"
        )


def _spearman(
    first: dict[tuple[str, int], float], second: dict[tuple[str, int], float], pairs: list[tuple[str, int]]
) -> float:
    ranks = spearmanr([first[pair] for pair in pairs], [second[pair] for pair in pairs])
    return float(ranks.statistic)


if __name__ == "__main__":
    main()
