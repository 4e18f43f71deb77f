"""What a request may ask for, and its refusal by name: the same check where it comes in and where it is obeyed.

The format is what clients rely on; `version` of `GET /v1/personavec/vectors` says whose it is. A request has
`sampling_params.extra_args.persona` in `/inference/v1/generate` (`vllm_xargs.persona`, as text, in OpenAI's routes):

    {"steering": [{"vector": HASH, "coef": 0.5, "layer": 15, "positions": "response", "op": "add",
                   "floor": null, "ceiling": null, "above": null, "below": null}, …],
     "watch": [{"vector": HASH, "layer": 15}, …], "spans": [[0, 24], [24, 60]], "id": "chat-1"}

All fields but `vector` may be left out, and null is as if left out. HASH is `PersonaVector.content_hash`. `layer` is by
default the one that the vector recommends, and `"all"` is every layer (to add: by increments). `positions` is
`response`, `prompt` or `all`, `op` is `add`, `ablate` or `cap`; `coef` is 1 by default and a bound that is not given is
infinite. Steerings are obeyed as `personavec.steering.steer` does, whose fields these are. `watch` reads projections
from the last token of the prompt on, `spans` means of the stream at every layer; both need an `id`.

`POST /v1/personavec/readings` with `{"ids": ["chat-1"]}` answers, once for each, and leaves out what is not there:

    {"chat-1": {"start": 23, "watch": [[0.1, …], …], "spans": [
                {"tokens": 24, "mean": {"0": BASE64, …}, "norm": {"0": 7.5, …}}, …], "error": null}}

A vector that is not in the folder can be given first, if the operator allows it: `POST /v1/personavec/vectors` with the
bytes of its file answers `{"hash": HASH}`. It steers, but is not watched.

`start` is the position of the first projection, `watch` a list for each look, `mean` by layer little-endian float32 in
base64, `norm` by layer the mean length of the stream, `error` a text if not all was read.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from personavec.vllm.settings import Settings, StoredVector, StoredVectors

FIELD = "persona"
"""Of `extra_args` (`vllm_xargs` in OpenAI's routes): an object, or the text of one in JSON."""
LARGEST = 1e30
"""Of the numbers: activations are float32."""
SPANS = 3
"""Most spans of a request whose means are read."""
LONGEST_ID = 100
SELF = "selfcheck "
"""How ids begin that a server gives while it checks itself."""

PROMPT, LAST, RESPONSE = range(3)
"""Kinds of tokens: of the prompt but for its last, the last, whose output predicts the reply, and of the reply."""
COVERED = {"all": (PROMPT, LAST, RESPONSE), "prompt": (PROMPT, LAST), "response": (LAST, RESPONSE)}
"""Which kinds of tokens are steered at each choice of positions."""
OPS = ("add", "ablate", "cap")
DEFAULTS: dict[str, Any] = {
    "coef": 1.0,
    "layer": None,
    "positions": "response",
    "op": "add",
    "floor": -math.inf,
    "ceiling": math.inf,
    "above": -math.inf,
    "below": math.inf,
}


@dataclass(frozen=True)
class Change:
    """One steering, as `personavec.steering.steer.Steering` is one."""

    vector: str
    coef: float
    layer: int | None
    positions: str
    op: str
    floor: float
    ceiling: float
    above: float
    below: float

    @property
    def gated(self) -> bool:
        """Whether it waits for a projection to pass a bound."""
        return self.above > -math.inf or self.below < math.inf

    @property
    def edits(self) -> bool:
        """Whether it clamps or asks a projection, rather than add alone."""
        return self.gated or self.op != "add"

    def here(self, layer: int, kind: int) -> bool:
        """Whether it changes a kind of token at a layer."""
        return self.layer in (None, layer) and kind in COVERED[self.positions]


@dataclass(frozen=True)
class Asked:
    """What a request asks for."""

    changes: tuple[Change, ...] = ()
    looks: tuple[tuple[str, int], ...] = ()
    """Vectors and layers whose projections are read at the last token of the prompt and all after it."""
    spans: tuple[tuple[int, int], ...] = ()
    """Positions, from and up to, over which the stream is averaged at every layer; they do not overlap."""
    id: str = ""
    """Under which the readings are fetched."""

    def salt(self, prompt_tokens: int) -> str:
        """What keys and values of a prompt depend on besides its tokens; empty if on nothing.

        Which tokens are prompt depends on its length, and a reply that was steered may be the prompt of the next one.
        """
        if not self.changes:
            return ""
        length = 0 if all(change.positions == "all" for change in self.changes) else prompt_tokens
        text = json.dumps([length, *map(astuple, self.changes)])
        return hashlib.sha256(text.encode()).hexdigest()


def read(value: Any, vectors: Mapping[str, StoredVector], settings: Settings, most_tokens: int) -> Asked:
    """What a request asks for.

    Args:
        value: Of `FIELD`.
        vectors: The operator's.
        settings: Of the server.
        most_tokens: Of prompt and reply together.

    Raises:
        ValueError: Something is wrong with it; the text names the field.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"expected {FIELD} to be an object, got text that is no JSON ({error})"[:300]) from None
    given = _fields(value, FIELD, {"steering": [], "watch": [], "spans": [], "id": ""})
    n_layers = len(next(iter(vectors.values())).direction)
    changes = tuple(
        _change(entry, f"{FIELD}.steering.{number}", vectors, settings, n_layers)
        for number, entry in enumerate(_list(given["steering"], f"{FIELD}.steering", 16))
    )
    changes = tuple(change for change in changes if change.op != "add" or change.coef != 0)
    _check_edits(changes, settings, n_layers)
    looks = tuple(
        _look(entry, f"{FIELD}.watch.{number}", vectors, settings, n_layers)
        for number, entry in enumerate(_list(given["watch"], f"{FIELD}.watch", 64))
    )
    spans = _spans(given["spans"], settings, most_tokens)
    name = given["id"]
    if not isinstance(name, str) or len(name) > LONGEST_ID or bool(name) != bool(looks or spans):
        raise ValueError(
            f"expected {FIELD}.id, a text of at most {LONGEST_ID} characters, with watch or spans and without them "
            f"none, got {_shown(name)}; readings are fetched by it"
        )
    return Asked(changes, looks, spans, name)


def _change(entry: Any, where: str, vectors: Mapping[str, StoredVector], settings: Settings, n_layers: int) -> Change:
    given = _fields(entry, where, {"vector": None, **DEFAULTS})
    vector = _vector(given["vector"], f"{where}.vector", vectors)
    wanted = _wanted(given["layer"], where, vector)
    layer = None if wanted == "all" else _layer(wanted, where, vector, settings, n_layers)
    if layer is None and settings.layers is not None:
        raise ValueError(
            f"expected {where}.layer to be one of {_some(settings.layers)}, got all; the server was started for those"
        )
    for name, choices in (("positions", tuple(COVERED)), ("op", OPS)):
        if given[name] not in choices:
            raise ValueError(f"expected {where}.{name} to be one of {', '.join(choices)}, got {_shown(given[name])}")
    numbers = {
        name: _number(given[name], f"{where}.{name}", DEFAULTS[name])
        for name in ("coef", "floor", "ceiling", "above", "below")
    }
    change = Change(given["vector"], layer=layer, positions=given["positions"], op=given["op"], **numbers)
    if change.floor > change.ceiling:
        raise ValueError(f"expected {where}.floor up to its ceiling, got {change.floor:g} above {change.ceiling:g}")
    if change.gated and change.op == "add" and layer is None:
        raise ValueError(f"expected {where}.layer to be one layer where above or below is given, got all")
    used = range(n_layers) if layer is None else [layer]
    needs_unit = used if change.edits or (layer is not None and bool(vector.direction.any())) else []
    for number in needs_unit:
        if number in vector.absent or not vector.direction[number].any():
            raise ValueError(f"expected {where}.vector to have a direction at layer {number}, got none there")
    return change


def _check_edits(changes: tuple[Change, ...], settings: Settings, n_layers: int) -> None:
    for kind in (PROMPT, LAST, RESPONSE):
        counts = Counter(
            layer for change in changes if change.edits for layer in range(n_layers) if change.here(layer, kind)
        )
        if counts and max(counts.values()) > settings.edits:
            raise ValueError(
                f"expected {FIELD}.steering to ablate, cap or gate at most {settings.edits} directions in a layer, got "
                f"{max(counts.values())}; ask the operator for a larger --edits"
            )


def _look(
    entry: Any, where: str, vectors: Mapping[str, StoredVector], settings: Settings, n_layers: int
) -> tuple[str, int]:
    given = _fields({"vector": entry} if isinstance(entry, str) else entry, where, {"vector": None, "layer": None})
    vector = _vector(given["vector"], f"{where}.vector", vectors)
    if given["vector"] not in (vectors.read if isinstance(vectors, StoredVectors) else vectors):
        raise ValueError(f"expected {where}.vector to be of this server's folder, got one that a client gave")
    layer = _layer(_wanted(given["layer"], where, vector), where, vector, settings, n_layers)
    if not vector.direction[layer].any():
        raise ValueError(f"expected {where}.vector to have a direction at layer {layer}, got none there")
    return given["vector"], layer


def _spans(value: Any, settings: Settings, most_tokens: int) -> tuple[tuple[int, int], ...]:
    where, end = f"{FIELD}.spans", 0
    spans: list[tuple[int, int]] = []
    entries = _list(value, where, SPANS)
    if entries and not settings.means:
        raise ValueError(f"expected no {where}, got some; the server was started without means")
    for number, entry in enumerate(entries):
        pair = tuple(entry) if isinstance(entry, list | tuple) and len(entry) == 2 else (-1, -1)
        if any(type(place) is not int for place in pair) or not end <= pair[0] < pair[1] <= most_tokens:
            raise ValueError(
                f"expected {where}.{number} to be two positions, from and up to, behind the span before it and at most "
                f"{most_tokens}, got {_shown(entry)}"
            )
        spans.append((pair[0], pair[1]))
        end = pair[1]
    return tuple(spans)


def _fields(value: Any, where: str, known: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected {where} to be an object, got {_shown(value)}")
    if unknown := [name for name in value if name not in known]:
        raise ValueError(f"expected {where} to have {', '.join(known)}, got {_shown(unknown[0])}; leave it out")
    return {**known, **{name: part for name, part in value.items() if part is not None}}


def _list(value: Any, where: str, most: int) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple) or len(value) > most:
        raise ValueError(f"expected {where} to be a list of at most {most}, got {_shown(value)}")
    return value


def _vector(name: Any, where: str, vectors: Mapping[str, StoredVector]) -> StoredVector:
    try:
        return vectors[name if isinstance(name, str) else ""]
    except KeyError:
        raise ValueError(
            f"expected {where} to be the content hash of a vector of this server, got {_shown(name)}; "
            "/v1/personavec/vectors lists them"
        ) from None


def _wanted(layer: Any, where: str, vector: StoredVector) -> Any:
    """A layer as it was asked for, or else the one that the vector recommends."""
    if layer is None and vector.layer is None:
        raise ValueError(f"expected {where}.layer, as the vector recommends none, got none")
    return vector.layer if layer is None else layer


def _layer(value: Any, where: str, vector: StoredVector, settings: Settings, n_layers: int) -> int:
    layers = range(n_layers) if settings.layers is None else settings.layers
    if type(value) is not int or value not in layers or value in vector.absent:
        there = [layer for layer in layers if layer not in vector.absent]
        raise ValueError(f"expected {where}.layer to be one of {_some(there)}, got {_shown(value)}")
    return value


def _number(value: Any, where: str, default: float) -> float:
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not (abs(value) <= LARGEST or value == default):
        raise ValueError(f"expected {where} to be a number within ±{LARGEST:g}, got {_shown(value)}")
    return float(value)


def _some(layers: Sequence[int]) -> str:
    whole = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if whole else ", ".join(map(str, layers))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple) and len(value) > 4:
        return f"a list of {len(value)}"
    return repr(value)[:80]
