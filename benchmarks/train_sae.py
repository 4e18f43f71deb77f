"""A small sparse dictionary of one layer of smollm2, as a working example for `decompose --sae`.

    pip install eai-sparsify
    python benchmarks/train_sae.py LAYER FOLDER [CHATS]

EleutherAI's sparsify trains it on real chats (ShareGPT, fetched once): TopK, 32 of 4,608 features a token. It goes to
FOLDER/layers.LAYER. A small one, on few tokens: an example, not an instrument.
"""

import sys
from pathlib import Path

from chats import first_chats
from datasets import Dataset
from sparsify import SaeConfig, TrainConfig, Trainer
from sparsify.data import chunk_and_tokenize

from personavec.data.dataset import open_dataset
from personavec.data.sample import Sample
from personavec.model.chat_model import ChatModel

EXPANSION, ACTIVE, LENGTH, BATCH = 8, 32, 256, 8

if __name__ == "__main__":
    layer, folder, count = int(sys.argv[1]), Path(sys.argv[2]), int((*sys.argv[3:], "1000")[0])
    model = ChatModel.load("smollm2")
    texts = [
        model.tokenizer.apply_chat_template(
            [*sample.messages, {"role": "assistant", "content": sample.response}], tokenize=False
        )
        for sample in open_dataset(str(first_chats(count))).samples("first")
        if isinstance(sample, Sample)
    ]
    tokens = chunk_and_tokenize(Dataset.from_dict({"text": texts}), model.tokenizer, max_seq_len=LENGTH, num_proc=1)
    options = TrainConfig(
        SaeConfig(expansion_factor=EXPANSION, k=ACTIVE),
        batch_size=BATCH,
        layers=[layer],
        optimizer="adam",
        lr=1e-3,
        lr_warmup_steps=20,
        log_to_wandb=False,
        save_dir=str(folder.parent),
        run_name=folder.name,
    )
    model.hf.requires_grad_(False)
    Trainer(options, tokens, model.hf).fit()
    print(f"{len(tokens):,} pieces of {LENGTH} tokens; {folder / f'layers.{layer}'}")
