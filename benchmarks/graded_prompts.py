"""Why monitoring fails for a trait: does the model follow the graded system prompts at all?

From the result.json of a monitoring experiment, by trait: how the strength that a prompt asks for correlates with
the trait score and with the projection, over conditions, next to r over all replies. Then the hypothesis: r is
low where the score does not follow the prompts; over all traits, and with each left out.

    python benchmarks/graded_prompts.py runs/paper/monitoring/result.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from scipy.stats import pearsonr, spearmanr


def followed(conditions: list[dict[str, Any]]) -> tuple[float, float]:
    """Rank correlation of what is asked for with the score, and with the projection; the first prompt asks for most."""
    levels = range(len(conditions), 0, -1)
    score = spearmanr(levels, [condition["score"]["mean"] for condition in conditions]).statistic
    return float(score), float(spearmanr(levels, [condition["projection"] for condition in conditions]).statistic)


def main(path: Path) -> None:
    """Print the table and the correlation over traits."""
    traits = json.loads(path.read_text())["traits"]
    figures_of = {
        name: (*followed(kinds["system"]["conditions"]), kinds["system"]["overall"]["mean"])
        for name, kinds in traits.items()
    }
    print("| trait | score follows the prompts | projection follows the prompts | r overall |\n|---|---|---|---|")
    for name, figures in figures_of.items():
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in figures)} |")
    print("\nr overall where the score follows the prompts:")
    for left_out in (None, *figures_of) if len(figures_of) > 3 else (None,):
        rows = [figures for name, figures in figures_of.items() if name != left_out]
        test = pearsonr([score for score, _, _ in rows], [r for _, _, r in rows])
        low, high = test.confidence_interval()
        over = f"without {left_out}" if left_out else "over all traits"
        print(f"{test.statistic:.2f} [{low:.2f}, {high:.2f}] {over}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
