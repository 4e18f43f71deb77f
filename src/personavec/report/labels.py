"""Labels next to points, where they cover nothing."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

LETTER, LINE, GAP = 5.6, 12, 7
"""Pixels: width of a letter, height of a line, and between a point and its label."""
RADIUS = 4


class Label(NamedTuple):
    """Where a label stands by its point."""

    point: int
    align: Literal["left", "center", "right"]
    dx: float
    dy: float


def labels(
    points: Sequence[tuple[float, float]], names: Sequence[str], width: float, height: float, always: int = 0
) -> Iterator[Label]:
    """Labels that fit: each stands at the first side of its point where it covers nothing.

    The first points come first. What fits nowhere is left out; what always stands, only outside the panel.

    Args:
        points: Pixels from the left and from the top.
        names: Of the points.
        width: Of the panel; no label leaves it.
        height: Of the panel.
        always: How many of the first points have a label even where it covers something.
    """
    taken = [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in points]
    for index, (x, y) in enumerate(points):
        long = LETTER * len(names[index])
        places: list[tuple[Literal["left", "center", "right"], float, float, float, float]] = [
            ("left", GAP, 0, x + GAP, y),
            ("right", -GAP, 0, x - GAP - long, y),
            ("center", 0, -LINE, x - long / 2, y - LINE),
            ("center", 0, LINE, x - long / 2, y + LINE),
        ]
        fitting = []
        for align, dx, dy, left, middle in places:
            box = (left, middle - LINE / 2, left + long, middle + LINE / 2)
            if box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height:
                covered = sum(_overlap(box, other) for other in taken)
                fitting.append((covered, box, Label(index, align, dx, dy)))
        if not fitting:
            continue
        covered, box, label = min(fitting, key=lambda place: place[0])
        if covered == 0 or index < always:
            taken.append(box)
            yield label


def _overlap(box: Sequence[float], other: Sequence[float]) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
