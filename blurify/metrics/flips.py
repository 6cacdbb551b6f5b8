"""Pictures whose answer flips when they shift by one pixel: the most telling ones, with both answers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from blurify.metrics.evidence import Flip, Flips
from blurify.metrics.shift_curves import Path, Walk, answer
from blurify.metrics.subject import Preprocessing
from blurify.metrics.thumbnails import address

MOST = 6


def flips(
    walks: Sequence[Walk],
    canvases: Tensor,
    path: Path,
    geometry: Preprocessing,
    names: Sequence[str],
    classes: Sequence[str] = (),
    *,
    most: int = MOST,
    pictures: bool = True,
) -> Flips:
    """Of the answers on the way over some pictures, those that a step of one pixel changes.

    The more sure a model is of both answers, the more telling the flip: a network that wavers between two at 5% each
    says little. So of each picture the step counts at which the smaller of the two probabilities is largest, of
    whichever model; pictures are shown in that order, and of each model that flips at all, its own most telling one
    among the first, so that none looks steadier than it is.

    Args:
        walks: one a model, of the same pictures and path.
        canvases: (N, C, H, W), the pictures.
        path: of the window.
        geometry: the models'.
        names: of the pictures.
        classes: names of the classes; () where they have none.
        most: pictures to show.
        pictures: show them; else only what was answered.
    """
    found: list[list[tuple[float, int, int]]] = []  # a model: (smaller probability, picture, step)
    for walked in walks:
        changes = walked.tops[:, 1:] != walked.tops[:, :-1]
        smaller = walked.sure[:, 1:].minimum(walked.sure[:, :-1]).masked_fill(~changes, -1)
        best, steps = smaller.max(1)
        at = zip(best.tolist(), range(len(best)), steps.tolist(), strict=True)
        found.append(sorted((item for item in at if item[0] >= 0), key=lambda item: (-item[0], item[1])))
    first = [part[0] for part in found if part]
    rest = sorted((item for part in found for item in part), key=lambda item: (-item[0], item[1]))
    chosen: dict[int, int] = {}
    for _, picture, step in (*sorted(first, reverse=True), *rest):
        chosen.setdefault(picture, step)
    shown = []
    for picture, step in list(chosen.items())[:most]:
        places = path.shifts[step], path.shifts[step + 1]
        seen = [path.seen(canvases[picture : picture + 1], geometry, place)[0] for place in places] if pictures else []
        answers = tuple(
            (answer(walked, picture, step, classes), answer(walked, picture, step + 1, classes)) for walked in walks
        )
        both = path.place(places[0]), path.place(places[1])
        shown.append(Flip(names[picture], both, answers, tuple(map(address, seen))))
    return Flips(len(canvases), len(path.shifts) - 1, tuple(map(len, found)), tuple(shown))
