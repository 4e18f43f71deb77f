"""How much of everything each part measures, next to the paper's sizes, and what of the paper is not done at all."""

import inspect
import math
from typing import Any

from personavec.paper.data import TRAINED
from personavec.paper.study import Size, Study
from personavec.verbs.extract.extract import extract

Row = dict[str, Any]

ROWS, STEPS = "4,677 to 12,782", "264 to 719"
"""Source: appendix D.1 and the released configuration; counted by a rerun."""
QUESTIONS, REPLIES, ONE = "20", "10", "1"
"""Source: section 2 and the released configuration."""
PAPER: dict[str, dict[str, str]] = {
    "vectors": {"traits": "7", "instruction pairs": "5", "extraction questions": "20", "rollouts a side": "1,000"}
    | {"held-out questions": QUESTIONS, "replies a question": REPLIES, "tokens a reply": "1,000", "seeds": ONE},
    "positions": {"traits": "3", "held-out questions": QUESTIONS, "replies a question": REPLIES},
    "judges": {"traits": "3", "replies compared": "300, by two people"},
    "monitoring": {"system prompts": "8", "numbers of shots": "0, 5, 10, 15, 20", "held-out questions": QUESTIONS}
    | {"replies a question": REPLIES},
    "finetunings": {"data sets": "24", "rows a set": ROWS, "steps": STEPS, "held-out questions": QUESTIONS}
    | {"replies a question": REPLIES, "seeds": ONE},
    "mitigation": {"data sets": "4 a trait", "rows a set": ROWS, "steps": STEPS, "held-out questions": QUESTIONS}
    | {"replies a question": REPLIES, "seeds": ONE},
    "harmless": {"harmless rows": "about 10,000", "facts": "1,000, 20 chats each", "held-out questions": QUESTIONS}
    | {"replies a question": REPLIES, "seeds": ONE},
    "separability": {"rows a set": ROWS},
    "rungs": {"rows": "up to 200,000 of each of 4 sets"},
    "filtering": {"clean rows": "20,000", "rows trained on": "1,000", "seeds": "5"},
    "geometry": {"traits": "7"},
    "real_chats": {"rows screened": "up to 200,000 of each of 4 sets", "rows trained on": "500", "seeds": ONE}
    | {"steps": "312, in 10 epochs"},
}
"""Sources: sections 2, 3.3, 4 and 5, appendices B to D, I to L, and the released code; see docs/paper.md."""
NOT_DONE = {
    "appendix B.2, judges and people": "needs people; `evaluate --agreement` writes the sheet that they fill in",
    "appendix B.3, agreement with external benchmarks": "the data (Betley's questions, sycophancy of "
    "Nishimura-Gasparian, HaluEval) are not fetched, and answers to them need a larger model",
    "appendix D, data with mistakes in medicine, code and mathematics": "needs a model that knows these fields and one "
    "that writes the mistakes; chats with the reply to another chat stand in",
    "appendix J.1, skill kept in the field of the data": "needs such data; accuracy on MMLU's dev questions stands "
    "next to the methods instead, where lm-eval is installed",
    "appendix J.3, all layers on every data set": "only on overt data of one trait, for time",
    "appendix J.7, facts after the model's cutoff, each in 20 chats": "invented facts in one chat each stand in",
    "appendix K, five seeds of training": "one seed, for time",
    "section 6.3 and appendix L, LMSYS, Tulu 3, UltraChat and WildChat": "not fetched, ShareGPT stands in; before "
    "training on the chats that a judge finds harmless, half of them are dropped, where the paper drops scores of 1 of "
    "100 and more",
    "appendix M, sparse autoencoders": "not for this model; `decompose` takes those of others",
}
"""What of the paper's experiments the parts leave out, and why."""


def sizes(study: Study, part: str) -> list[Row]:
    """What a part measures, next to the paper's."""
    here = _here(study, study.size).get(part, {})
    theirs = PAPER.get(part, {})
    return [{"what": what, "here": here[what], "paper": theirs.get(what, "–")} for what in here]


def _here(study: Study, size: Size) -> dict[str, dict[str, str]]:
    options = {name: option.default for name, option in inspect.signature(extract).parameters.items()} | {
        **size.extract
    }
    pairs, asked = (size.pairs or 5), (size.questions or 20)
    held_out, measured = (min(asked, size.asked or asked), size.rollouts)
    kept = math.ceil(size.rows / (TRAINED * asked)) * math.ceil(TRAINED * asked)
    levels = sum(len(study.levels(trait)) for trait in size.traits)

    def training(rows: int, epochs: float = 1.0) -> Row:
        return {"steps": f"{math.ceil(math.ceil(rows / study.training['batch']) * epochs)}", "seeds": ONE}

    asking = {"held-out questions": f"{held_out}", "replies a question": f"{measured}"}
    whole = {"held-out questions": f"{asked}", "replies a question": f"{size.method_rollouts}"}
    tokens = {"tokens a reply": f"{study.interview.max_new_tokens}"}
    return {
        "vectors": {
            "traits": f"{len(size.traits)}",
            "instruction pairs": f"{pairs}",
            "extraction questions": f"{asked}",
            "rollouts a side": f"{pairs * asked * options['rollouts']}",
            "held-out questions": f"{asked}",
            "replies a question": f"{options['check_rollouts']}",
            **tokens,
            "seeds": ONE,
        },
        "positions": {"traits": f"{len(size.main)}"}
        | {"held-out questions": f"{asked}", "replies a question": f"{measured}"},
        "judges": {"traits": f"{len(size.single)}", "replies compared": f"{asked * measured}, and rollouts"},
        "monitoring": {
            "system prompts": "8",
            "numbers of shots": ", ".join(map(str, size.shots)),
            "held-out questions": f"{min(size.conditions, asked)}",
            "replies a question": f"{size.condition_rollouts}",
        },
        "finetunings": {"data sets": f"{levels + 2}", "rows a set": f"about {kept}"} | training(kept) | asking,
        "mitigation": {"data sets": f"{len(size.single)}", "rows a set": f"about {kept}"} | training(kept) | whole,
        "harmless": {"harmless rows": f"{size.rows}", "facts": "80, one chat each"} | training(80, 3) | whole,
        "separability": {"rows a set": f"about {kept}"},
        "rungs": {"rows": f"{size.chats}"},
        "filtering": {"clean rows": f"{size.chats}", "rows trained on": f"at most {2 * kept}", "seeds": ONE},
        "geometry": {"traits": f"{len(size.traits)}"},
        "real_chats": {"rows screened": f"{size.chats}", "rows trained on": f"{size.chosen}"} | training(size.chosen),
    }
