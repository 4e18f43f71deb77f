"""Does each judge know its own trait? Judges of several extractions on what every trait's instructions wrote.

    python benchmarks/judge_by_trait.py runs/devout/devout runs/poetic/poetic [MORE FOLDERS]

Each folder is that of a trait in an extraction; an extraction of several traits makes this table by itself.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from personavec.judges.load import load_bench
from personavec.judges.scoring import take_scale
from personavec.model.chat_model import ChatModel
from personavec.runs.run import Run
from personavec.traits.load import load_trait
from personavec.verbs.extract.across import judge_by_trait


def main() -> None:
    """Print a row a judge, a column a trait told to the model, and its own less the closest other."""
    folders = [Path(name).resolve() for name in sys.argv[1:]]
    traits = [load_trait(folder.name) for folder in folders]
    bench = load_bench("panel", ChatModel.load("smollm2"))
    scale = folders[0].parent / "coherence.json"
    take_scale(bench.coherence, json.loads(scale.read_text()), str(scale))
    with TemporaryDirectory() as place:
        for folder in folders:
            (Path(place) / folder.name).symlink_to(folder)
        among = judge_by_trait(bench, Run(Path(place)), traits)
    names = [trait.name for trait in traits]
    print("| judge of | " + " | ".join(names) + " | own less the closest |")
    print("|---" * (len(names) + 2) + "|")
    for name in names:
        cells = [f"{among['scores'][name][other]['mean']:.0f}" for other in names]
        least = among["above"][name]
        low, high = least["difference"]["ci"]
        closest = f"{least['difference']['mean']:.0f} [{low:.0f}, {high:.0f}] ({least['largest']})"
        print(f"| {name} | {' | '.join(cells)} | {closest} |")


if __name__ == "__main__":
    main()
