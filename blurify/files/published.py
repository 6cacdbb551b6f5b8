"""The weights that were published with the paper, and others of those anti-aliased architectures.

Their state_dicts hold the filters as buffers (`layer2.0.conv2.0.filt`), and because each filter is a layer of its own,
the layers behind it count on by one: `conv2.1.weight` for `conv2.weight`. Here they are recognised by the filters, and
the tensors are given the names of the plain architecture, which the matching recipe then converts. The filters
themselves are checked and left out: a converted model makes its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.files.sources.fitting import fitted
from blurify.files.sources.shapes import shapes_of
from blurify.files.weights import Renamed, shapes_in
from blurify.spec.filters import MAX_FILTER_SIZE, resolve_taps
from blurify.spec.recipes import Recipe, load_recipe

FILTER = ".filt"

_RESNETS = (
    "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d wide_resnet50_2 wide_resnet101_2"
)
_VGGS = "vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn"


@dataclass(frozen=True)
class _Family:
    """Published architectures that one recipe makes.

    Attributes:
        recipe: its name is published/RECIPE.
        filters: where the filters are.
        stem: the filter that only those have whose stem was converted, too.
        architectures: of torchvision.
    """

    recipe: str
    filters: tuple[str, ...]
    stem: str
    architectures: tuple[str, ...]

    def has(self, filters: list[str]) -> bool:
        """Whether these are its filters, all of them and no others, apart from the stem's."""
        left = [name for name in filters if not self.of_stem(name)]
        return len(left) == len(self.filters) and all(
            re.fullmatch(wanted, name) for wanted, name in zip(self.filters, sorted(left, key=_natural), strict=True)
        )

    def of_stem(self, name: str) -> bool:
        """Whether a filter is the one of a converted stem."""
        return name == self.stem


_IN_FEATURES = r"features\.\d+\.filt"
_FAMILIES = (
    _Family(
        "resnet",
        (
            *(rf"layer{stage}\.0\.(conv[23]|downsample)\.0\.filt" for stage in (2, 2, 3, 3, 4, 4)),
            r"maxpool\.[12]\.filt",
        ),
        "maxpool.0.filt",
        tuple(_RESNETS.split()),
    ),
    _Family(
        "densenet",
        (r"features\.pool0\.filt", *(rf"features\.transition{number}\.pool\.filt" for number in (1, 2, 3))),
        "features.ds0.filt",
        tuple(f"densenet{depth}" for depth in (121, 161, 169, 201)),
    ),
    _Family("mobilenet", (r"features\.\d+\.conv\.\d+\.filt",) * 4, "", ("mobilenet_v2",)),
    _Family("alexnet", (_IN_FEATURES,) * 4, "", ("alexnet",)),
    _Family("vgg", (_IN_FEATURES,) * 5, "", tuple(_VGGS.split())),
)


@dataclass(frozen=True)
class Published:
    """Weights of a published anti-aliased architecture.

    Attributes:
        tensors: without the filters, under the file's names.
        filters: how many filters there were.
        recipe: what converts the plain architecture into the one that they are of.
        family: the plain architectures of torchvision that it may be.
    """

    tensors: Mapping[str, Tensor]
    filters: int
    recipe: Recipe
    family: tuple[str, ...]

    @property
    def described(self) -> str:
        """What was recognised, for messages."""
        stem = " and of a converted stem" if self.recipe.stem == "convert" else ""
        return f"weights of antialiased_cnns ({self.filters} filters of {self.recipe.filter_size} taps{stem})"

    def named_as(self, own: Iterable[str]) -> Mapping[str, Tensor] | None:
        """The tensors under the names of a plain architecture.

        A filter in front moves a layer's number, and adds one to a name: names that are equal without numbers belong
        together, in the order of their numbers.

        Args:
            own: the architecture's names.

        Returns:
            None where it has other layers.
        """
        theirs, wanted = _by_kind(self.tensors), _by_kind(own)
        if {kind: len(names) for kind, names in theirs.items()} != {kind: len(names) for kind, names in wanted.items()}:
            return None
        stored = {name: other for kind in wanted for name, other in zip(wanted[kind], theirs[kind], strict=True)}
        return Renamed(self.tensors, {name: stored[name] for name in own})

    def architectures(self) -> list[str]:
        """The plain architectures of torchvision that have these tensors, as factory specs with what was read off."""
        found = []
        for name in self.family:
            spec = f"torchvision/{name}"
            try:
                named = self.named_as(list(shapes_of(spec)))
                fit = fitted(spec, shapes_in(named)) if named is not None else None
            except BlurifyError:  # a torchvision without it
                continue
            if fit is not None:
                found.append(fit[0])
        return found


def recognise(tensors: Mapping[str, Tensor]) -> Published | None:
    """Whether a file holds weights of a published anti-aliased architecture: by its filters, their places and values.

    Args:
        tensors: of the file; what wrappers put before all names is taken off.
    """
    if not any(name.endswith(FILTER) for name in tensors):
        return None
    names = {name: name for name in tensors if name != "n_averaged"}  # of AveragedModel
    while True:
        filters = [name for name in names if name.endswith(FILTER)]
        family = next((family for family in _FAMILIES if family.has(filters)), None)
        if family is not None:
            break
        first = next(iter(names)).partition(".")[0] + "."
        if not all(name.startswith(first) and name != first for name in names):
            return None
        names = {name.removeprefix(first): stored for name, stored in names.items()}
    sizes = {_taps_of(tensors[names[name]]) for name in filters}
    (size,) = sizes if len(sizes) == 1 else (None,)
    if size is None:
        return None
    recipe = load_recipe(f"published/{family.recipe}").with_filter(filter_size=size)
    if any(family.of_stem(name) for name in filters):
        recipe = dataclasses.replace(recipe, stem="convert")
    kept = {name: stored for name, stored in names.items() if name not in filters}
    return Published(Renamed(tensors, kept), len(filters), recipe, family.architectures)


def _taps_of(stored: Tensor) -> int | None:
    """The number of taps of a filter for each channel; None where it is no binomial one."""
    size = stored.shape[-1] if stored.dim() == 4 else 0
    if not 1 <= size <= MAX_FILTER_SIZE or stored.shape[1:] != (1, size, size):
        return None
    taps = torch.tensor(resolve_taps(size, None), dtype=torch.float64)
    wanted = (taps[:, None] * taps[None, :]).expand(stored.shape)
    # Half precision holds most of these numbers exactly, and bfloat16 all but exactly.
    return size if torch.allclose(stored.double(), wanted, rtol=1e-2, atol=0) else None


def _by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by what they are without their numbers, each kind in the order of the numbers."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names, key=_natural):
        kinds[".".join(part for part in name.split(".") if not part.isdigit())].append(name)
    return dict(kinds)


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in name.split("."))
