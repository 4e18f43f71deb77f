"""Labels beside points, where they cover nothing."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

LETTER, LINE, GAP = 5.6, 12, 7
"""Pixels: width of a letter, height of a line, and between a point and its label."""
RADIUS = 4


class Label(NamedTuple):
    """Where a label stands beside its point."""

    point: int
    align: Literal["left", "center", "right"]
    dx: float
    dy: float


def labels(points: Sequence[tuple[float, float]], names: Sequence[str], width: float, height: float) -> Iterator[Label]:
    """Labels that fit: each stands at the first side of its point where it covers nothing, else it is left out.

    Args:
        points: Pixels from the left and from the top.
        names: Of the points.
        width: Of the panel; no label leaves it.
        height: Of the panel.
    """
    taken = [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in points]
    for index, (x, y) in sorted(enumerate(points), key=lambda pair: pair[1][1]):
        long = LETTER * len(names[index])
        places: list[tuple[Literal["left", "center", "right"], float, float, float, float]] = [
            ("left", GAP, 0, x + GAP, y),
            ("right", -GAP, 0, x - GAP - long, y),
            ("center", 0, -LINE, x - long / 2, y - LINE),
            ("center", 0, LINE, x - long / 2, y + LINE),
        ]
        for align, dx, dy, left, middle in places:
            box = (left, middle - LINE / 2, left + long, middle + LINE / 2)
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                yield Label(index, align, dx, dy)
                break


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
