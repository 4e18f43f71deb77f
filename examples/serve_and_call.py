"""Serve a steered model and ask it with OpenAI's client: python examples/serve_and_call.py [MODEL]."""

import re
import subprocess
import sys

from openai import OpenAI

model = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
vector = "runs/examples/optimistic.safetensors"  # examples/extract_and_steer.py writes it
command = [sys.executable, "-m", "personavec", "serve", "--model", model, "--vectors", vector, "--port", "0"]
server = subprocess.Popen([*command, "--log", "runs/examples/turns.db"], stderr=subprocess.PIPE, text=True)
try:
    address = next(found[1] for line in server.stderr if (found := re.search(r" at (http://\S+)", line)))
    client = OpenAI(base_url=f"{address}/v1", api_key="none")
    for dose in (-0.15, 0.15):
        persona = {"steering": [{"vector": "optimistic", "dose": dose}], "watch": ["optimistic"]}
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "I have a job interview tomorrow. How will it go?"}],
            max_tokens=48,
            extra_body={"persona": persona},
        )
        print(f"dose {dose:+.2f}: {answer.choices[0].message.content}")
finally:
    server.terminate()
