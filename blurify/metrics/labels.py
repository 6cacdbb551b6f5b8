"""Which class folder is which of the model's classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def class_labels(
    folders: Sequence[str], classes: int, categories: Sequence[str] = (), *, nested: bool = False
) -> tuple[dict[str, int] | None, str]:
    """The model's class for each class folder, by the first of these rules that fits all of them.

    1. they are whole numbers below the number of classes: those are the classes;
    2. the model has 1000 classes and they are ImageNet's identifiers (n01440764, ...);
    3. they are names of the model's categories (case, '_' and '-' don't matter);
    4. there are as many as the model has classes: in sorted order, as training programs take them. Not where they are
       numbers whose order as text is another one (1, 10, 2, ...): nobody can tell which was meant. Nor where pictures
       lie in folders below them, as train/ and val/ have them.

    Args:
        folders: the folders' names.
        classes: how many the model has.
        categories: their names, where the model tells; ImageNet's for 1000 classes where it doesn't.
        nested: pictures lie deeper than in these folders.

    Returns:
        The classes by folder, and which rule it was; or None, and why there are none.
    """
    if not folders:
        return None, "no class folders"
    if all(name.isdecimal() for name in folders) and max(map(int, folders)) < classes:
        return {name: int(name) for name in folders}, "class folders are the classes' numbers"
    identifiers, described = _imagenet() if classes == 1000 else ({}, {})
    if all(name in identifiers for name in folders):
        return {name: identifiers[name] for name in folders}, "class folders are ImageNet's identifiers"
    named = _unambiguous([[name] for name in categories]) if len(categories) == classes else described
    if all(_plain(name) in named for name in folders):
        return {name: named[_plain(name)] for name in folders}, "class folders are the names of the model's classes"
    ordered = sorted(folders)
    numbers = [int(name) for name in ordered if name.isdecimal()]
    if not nested and len(folders) == classes and (len(numbers) < classes or numbers == sorted(numbers)):
        return {name: index for index, name in enumerate(ordered)}, "class folders in sorted order"
    return None, (
        f"no labels: the {len(folders)} class folders ({', '.join(ordered[:3])}{', ...' * (len(folders) > 3)}) "
        f"can't be matched with the model's {classes} classes; name them by the classes' numbers, 0 to {classes - 1}"
        + ", or give the folder below that holds the class folders"
        * nested
    )


def _imagenet() -> tuple[dict[str, int], dict[str, int]]:
    """ImageNet's 1000 classes by identifier, and by each of their names that only one class has."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    names = [[*text.split(", "), text] for text in info.label_descriptions()]
    return {name: index for index, name in enumerate(info.label_names())}, _unambiguous(names)


def _unambiguous(names: Sequence[Sequence[str]]) -> dict[str, int]:
    pairs = {(_plain(name), index) for index, group in enumerate(names) for name in group}
    counts = Counter(name for name, _ in pairs)
    return {name: index for name, index in pairs if counts[name] == 1}


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
