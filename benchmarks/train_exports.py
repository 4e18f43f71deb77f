"""Finetune on the top, bottom and random rows of a screening, and measure the trait after each.

    pip install trl
    python benchmarks/train_exports.py RUN TRAIT

RUN is the folder of a `personavec screen … --export-k K` along the vector of TRAIT. Adapters and evaluations go into
RUN/trained; those that are there are kept. Prints a table. Written for evidence that is still to be measured:
not run yet.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from personavec.dataset import open_dataset
from personavec.model import ChatModel
from personavec.sample import Sample

EPOCHS, RATE, LONGEST = 2, 2e-4, 512
"""Of training: passes, learning rate, and the most tokens of a row."""


def train(data: Path, out: Path) -> None:
    """A LoRA adapter (the paper's: rank-stabilised, rank 32, alpha 64, every projection) on a file of exported rows."""
    model = ChatModel.load("smollm2", dtype="float32")
    rows = [
        {"prompt": list(sample.messages), "completion": [{"role": "assistant", "content": sample.response}]}
        for sample in open_dataset(str(data)).samples("first")
        if isinstance(sample, Sample)
    ]
    config = SFTConfig(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=EPOCHS,
        learning_rate=RATE,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        max_length=LONGEST,
        save_strategy="no",
        report_to=[],
        logging_steps=5,
        seed=0,
        use_cpu=True,
        bf16=False,
    )
    lora = LoraConfig(r=32, lora_alpha=64, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model.hf, args=config, train_dataset=Dataset.from_list(rows), processing_class=model.tokenizer, peft_config=lora
    )
    trainer.train()
    trainer.model.save_pretrained(out)


def evaluated(trait: str, out: Path, *more: str) -> dict[str, Any]:
    """What `personavec evaluate` finds."""
    command = [
        sys.executable,
        "-m",
        "personavec",
        "evaluate",
        trait,
        "--rollouts",
        "4",
        "--out",
        str(out),
        *more,
        "--json",
    ]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def told(arm: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    trait, coherence = (found[key] for key in ("trait_score", "coherence"))
    sides = [f"{own['mean']:.1f} [{own['ci'][0]:.1f}, {own['ci'][1]:.1f}]" for own in (trait, coherence)]
    return f"| {arm} | {sides[0]} | {sides[1]} |"


if __name__ == "__main__":
    run, trait = Path(sys.argv[1]), sys.argv[2]
    print(told("not trained", evaluated(trait, run / "trained" / "base")))
    for arm in (f"top-{trait}", "random", f"bottom-{trait}"):
        adapter = run / "trained" / arm
        if not (adapter / "adapter_config.json").exists():
            train(run / f"{arm}.jsonl", adapter)
        print(told(arm, evaluated(trait, run / "trained" / f"{arm}-evaluated", "--adapter", str(adapter))), flush=True)
