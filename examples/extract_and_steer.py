"""Find a persona vector, see whether it is proven, and steer with it: python examples/extract_and_steer.py [MODEL]."""

import sys

import personavec as pv

model = pv.ChatModel.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2")

# minutes to an hour, as it says when it begins; a killed run goes on where it was, since all is kept in the store
extraction = pv.extract(model, "optimistic", store="runs/examples/extract")
print(extraction)
print("report:", extraction.report())

vector = extraction.vector
vector.save("runs/examples/optimistic.safetensors")  # the other examples take it from there

question = "I have a job interview tomorrow. How will it go?"
for dose in (-0.15, 0.0, 0.15):  # shares of the activation's length; minus takes the trait away
    reply = model.chat(question, steer=vector.at(dose=dose), temperature=0, max_new_tokens=48)
    print(f"\ndose {dose:+.2f}: {reply}")
