"""`personavec serve --engine vllm:URL` against `personavec serve`: the same requests to both, greedy, float32.

    vllm/bin/python -m personavec.vllm --vectors VECTORS --model MODEL --dtype float32 --port 8001
    python benchmarks/serve_elsewhere.py --engine vllm:http://localhost:8001 --model MODEL --vector devout

Prints how many replies are equal, and the largest differences of log-probabilities and projections.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from typing import Any

import openai

QUESTIONS = ("My best friend has fallen seriously ill. What can I do?", "Tell me about rivers.")
TEXTS = ["The sky is blue today", "Once upon a time"]


@contextmanager
def serving(*options: str) -> Any:
    """A client of a server that is started for it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "personavec", "serve", "--port", "0", "--log", f"{folder}/turns.db"]
        process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        line = next(line for line in process.stderr if "http" in line)
        url = next(word for word in line.split() if word.startswith("http"))
        try:
            yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        finally:
            process.terminate()
            process.wait(30)


def far(one: Any, other: Any) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--vector", default="devout")
    parser.add_argument("--tokens", type=int, default=24)
    options = parser.parse_args()
    name = options.vector
    steerings: dict[str, Any] = {
        "plain": {},
        "steered": {"steering": [{"vector": name, "dose": 0.2}]},
        "capped": {"steering": [{"vector": name, "op": "cap", "ceiling": 1.0}]},
        "ablated": {"steering": [{"vector": name, "op": "ablate", "layer": "all", "positions": "all"}]},
    }
    common = ["--model", options.model, "--vectors", name, "--dtype", "float32"]
    equal, logprobs, projections = [], 0.0, 0.0
    with serving(*common) as here, serving(*common, "--engine", options.engine) as there:
        model = here.models.list().data[0].id
        asked: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": options.tokens}

        def chat(client: Any, question: str, persona: Any, **more: Any) -> Any:
            messages = [{"role": "user", "content": question}]
            return client.chat.completions.create(messages=messages, extra_body={"persona": persona}, **asked, **more)

        for kind, persona in steerings.items():
            for question in QUESTIONS:
                answers = [chat(client, question, persona, logprobs=True).choices[0] for client in (here, there)]
                equal.append(answers[0].message.content == answers[1].message.content)
                print(kind, question, "equal" if equal[-1] else "differs", flush=True)
                if equal[-1]:
                    told = [[token.logprob for token in answer.logprobs.content] for answer in answers]
                    read = [answer.persona["projections"][name] for answer in answers]
                    logprobs = max(logprobs, far(*told))
                    projections = max(projections, far(*([each["prompt_last"], *each["tokens"]] for each in read)))
        streams = [
            "".join(part.choices[0].delta.content or "" for part in chat(client, QUESTIONS[0], {}, stream=True))
            for client in (here, there)
        ]
        everywhere = {"persona": {"steering": [{"vector": name, "dose": 0.2, "positions": "all"}]}}
        scored = [
            client.completions.create(
                prompt=TEXTS, echo=True, logprobs=1, extra_body=everywhere, **asked | {"max_tokens": 0}
            ).choices
            for client in (here, there)
        ]
        prompts = [[value for choice in each for value in choice.logprobs.token_logprobs[1:]] for each in scored]
        responses = [
            client.responses.create(model=model, input=QUESTIONS[1], temperature=0, max_output_tokens=20).output_text
            for client in (here, there)
        ]
    found = {"equal replies": f"{sum(equal)} of {len(equal)}", "stream equal": streams[0] == streams[1]}
    found |= {"response equal": responses[0] == responses[1], "log-probabilities": logprobs}
    print(json.dumps(found | {"projections": projections, "prompts' log-probabilities": far(*prompts)}, indent=1))


if __name__ == "__main__":
    main()
