"""Chats with a model that drift: questions in a row, replies steered further from turn to turn, and benign ones."""

import argparse
import json

import numpy as np

from personavec.model.chat_model import ChatModel
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, batches, generate
from personavec.steering.steer import Steering
from personavec.steering.vector import load_vector
from personavec.traits.load import builtin_names, load_trait


def chats(model: ChatModel, count: int, steering: list[tuple[Steering, ...]], seed: int) -> list[list[dict[str, str]]]:
    """As many chats, one turn for each entry of the steering; questions of all built-in traits, in random order."""
    every = [question for name in builtin_names() for question in load_trait(name).check]
    rng = np.random.default_rng(seed)
    questions = [rng.choice(every, len(steering), replace=False).tolist() for _ in range(count)]
    talks: list[list[dict[str, str]]] = [[] for _ in range(count)]
    sampling = Sampling(max_new_tokens=24, temperature=0.7)
    for turn, steered in enumerate(steering):
        for talk, chosen in zip(talks, questions, strict=True):
            talk.append({"role": "user", "content": chosen[turn]})
        requests = [Request(model.render(talk), steered, (seed, turn, n)) for n, talk in enumerate(talks)]
        for batch in batches(requests, sampling.max_new_tokens, 8192):
            for n, reply in zip(batch, generate(model, [requests[i] for i in batch], sampling), strict=True):
                talks[n].append({"role": "assistant", "content": model.decode(reply.ids).strip() or "…"})
    return talks


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vector", help="a vector that comes with the package, or a file")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--doses", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.3])
    options = parser.parse_args()
    model, vector = ChatModel.load(options.model), load_vector(options.vector)
    layer = vector.card.layer
    ramp = [(Steering(vector, vector.coef(layer, dose), layer),) if dose else () for dose in options.doses]
    for name, count, steering, seed in (("benign", 80, [()] * len(ramp), 1), ("drifting", 20, ramp, 2)):
        with open(f"{name}.jsonl", "w") as file:
            for talk in chats(model, count, steering, seed):
                file.write(json.dumps({"messages": talk, "source": name}) + "\n")
