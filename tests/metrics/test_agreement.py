"""Agreement of two models: against loops over single pictures, and known answers."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.metrics.agreement import agreement, agreements
from blurify.metrics.consistency import consistency
from blurify.metrics.results import Agreement
from blurify.metrics.subject import Preprocessing, Subject, TensorPictures

CROP, CANVAS = (8, 6), (11, 9)
PLAIN = Preprocessing(CROP, CANVAS, 3, (0.0,) * 3, (1.0,) * 3)
COUNT = 23


def pictures(count: int = COUNT) -> TensorPictures:
    return TensorPictures(torch.rand(count, 3, *CANVAS, generator=torch.Generator().manual_seed(1)))


def seen() -> Tensor:
    return pictures().canvases[:, :, 1:9, 1:7]


class Net(nn.Module):
    """Answers with something made of its seven logits, by default themselves."""

    def __init__(self, seed: int, scale: float = 40.0, out: Any = None) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 6, 7)
        common, own = (torch.randn(7, 3 * 8 * 6, generator=torch.Generator().manual_seed(s)) for s in (0, seed))
        with torch.no_grad():
            self.linear.weight.copy_((common + 0.7 * own) * scale / 100)
            self.linear.bias.zero_()
        self.out = out or (lambda logits: logits)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.linear(x.flatten(1) - 0.5))


def subject(*args: Any, **more: Any) -> Subject:
    return Subject(Net(*args, **more), PLAIN, f"net {args[0]}")


def test_outputs_that_are_more_for_more_pictures() -> None:
    """A tensor a picture, of which there are fewer in a smaller batch."""
    one, other = (subject(seed, out=lambda logits: [row[:4, None] for row in logits]) for seed in (1, 2))
    with pytest.raises(BlurifyError, match="returns 4 tensors for some pictures and 1 for others"):
        agreement(one, other, pictures(7), batch_size=4)


def slow(one: nn.Module, other: nn.Module) -> dict[str, float]:
    """By the definitions, a picture and a class at a time, in Python's own numbers."""
    rows = []
    for picture in seen():
        first, second = (model(picture[None])[0].tolist() for model in (one, other))
        p, q = ([math.exp(v) / sum(map(math.exp, part)) for v in part] for part in (first, second))
        same = p.index(max(p)) == q.index(max(q))
        five, five_other = (sorted(range(7), key=part.__getitem__)[2:] for part in (p, q))
        centred = [torch.tensor([v - sum(part) / 7 for v in part]) for part in (first, second)]
        rows.append((
            same, sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), max(p), max(q),
            len({*five} & {*five_other}) / 5, p.index(max(p)) in five_other, angle(*centred),
        ))  # fmt: skip
    surely = [row[0] for row in rows if row[2] > 0.5]
    names = ("same", "divergence", "confidence", "confidence_other", "top5", "top1_in_top5", "cosine")
    means = {name: sum(column) / len(rows) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    return means | {"sure": sum(surely) / len(surely), "surely": len(surely)}


@pytest.mark.parametrize("batch_size", [4, 64])
def test_classifiers_against_the_definitions(batch_size: int) -> None:
    one, other = subject(1), subject(2)
    found, wanted = agreement(one, other, pictures(), batch_size=batch_size), slow(one.model, other.model)
    assert found.images == COUNT and found.relative_error is None
    surely = wanted.pop("surely")
    assert 0 < surely < COUNT and 0 < wanted["same"] < 1  # else the test would not tell
    assert 0.4 < wanted["top5"] < 1
    for name, value in wanted.items():
        assert getattr(found, name).value == pytest.approx(value, abs=1e-5), name
    assert found.same and found.sure and found.same.count == COUNT and found.sure.count == surely
    assert found.kept == found.same.value and found.lost == found.divergence.value


def test_the_divergence_is_of_the_original_from_the_other() -> None:
    forth, back = (agreement(*pair, pictures()) for pair in ((subject(1), subject(2)), (subject(2), subject(1))))
    assert forth.divergence and back.divergence and forth.same == back.same
    assert forth.divergence.value != pytest.approx(back.divergence.value, rel=0.05)


def test_a_model_agrees_with_itself() -> None:
    found = agreement(subject(1), subject(1), pictures())
    assert found.same and found.divergence
    assert found.kept == 1 and found.divergence.value == pytest.approx(0, abs=1e-12)
    assert found.confidence == found.confidence_other
    assert found.top5 and found.top1_in_top5 and found.cosine and found.original == "net 1"
    assert (found.top5.value, found.top1_in_top5.value, found.cosine.value) == (1, 1, 1)


def test_a_number_added_to_all_logits_changes_nothing_and_a_factor_only_how_sure_it_is() -> None:
    """Which the cosine of the logits themselves would not tell."""
    found = agreement(subject(1), subject(1, out=lambda logits: 0.01 * logits + 100), pictures())
    assert found.same and found.cosine and found.top5 and found.confidence and found.confidence_other
    assert (found.same.value, found.top5.value) == (1, 1) and found.cosine.value == pytest.approx(1, abs=1e-4)
    assert found.confidence_other.value < 0.2 < found.confidence.value


def test_who_says_the_opposite_has_three_of_five_and_not_the_first() -> None:
    """Of seven classes, the first five and the last five have three in common."""
    found = agreement(subject(1), subject(1, out=lambda logits: -logits), pictures())
    assert found.top5 and found.top1_in_top5 and found.cosine
    assert found.top5.values == pytest.approx((0.6,) * COUNT)
    assert (found.top1_in_top5.value, found.cosine.value) == (0, pytest.approx(-1))


def test_of_five_classes_all_are_among_the_first_five() -> None:
    few = [subject(seed, out=lambda logits: logits[:, :5]) for seed in (1, 2)]
    found = agreement(*few, pictures())
    assert found.same and found.top5 is None and found.top1_in_top5 is None


# --- across a shift


def crops(seed: int) -> tuple[Tensor, Tensor]:
    """The two random crops of each picture, by the rule of `consistency`: a row of six draws a picture."""
    draws = torch.rand(COUNT, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    corners = (draws[:, :4] * 4).long().tolist()  # 11 - 8 + 1 = 9 - 6 + 1 = 4 places along each axis
    canvases = pictures().canvases
    first = [canvases[n, :, y : y + 8, x : x + 6] for n, (y, x, _, _) in enumerate(corners)]
    second = [canvases[n, :, y : y + 8, x : x + 6] for n, (_, _, y, x) in enumerate(corners)]
    return torch.stack(first), torch.stack(second)


@pytest.mark.parametrize("batch_size", [4, 64])
def test_consistent_and_same_against_the_definition(batch_size: int) -> None:
    one, other = subject(1), subject(2)
    first, second = crops(3)
    with torch.no_grad():
        wanted, own, its = (
            [row.index(max(row)) for row in model(seen_now).tolist()]
            for model, seen_now in ((one.model, first), (one.model, second), (other.model, second))
        )
    found = agreement(one, other, pictures(), shifted=True, seed=3, batch_size=batch_size)
    assert found.consistent and found.consistent_and_same
    assert found.consistent.values == tuple(float(a == b) for a, b in zip(wanted, own, strict=True))
    assert found.consistent_and_same.values == tuple(float(a == b) for a, b in zip(wanted, its, strict=True))
    assert 0 < found.consistent_and_same.value < 1 and found.consistent.value != found.consistent_and_same.value
    steady = consistency(one, pictures(), seed=3)
    assert steady.agreement == found.consistent
    with_itself = agreement(one, one, pictures(), shifted=True, seed=3)
    assert with_itself.consistent_and_same == steady.agreement


def test_who_always_answers_the_same_is_steady_but_not_the_same() -> None:
    def always(logits: Tensor) -> Tensor:
        return torch.eye(7)[3].expand(len(logits), 7)

    steady = subject(2, out=always)
    assert consistency(steady, pictures()).agreement.value == 1
    found = agreement(subject(1), steady, pictures(), shifted=True)
    with torch.no_grad():
        threes = [float(int(answer) == 3) for answer in subject(1).model(crops(0)[0]).argmax(1)]
    assert found.consistent_and_same and found.consistent_and_same.values == tuple(threes)
    assert found.consistent_and_same.value < 0.5


class Colours(nn.Module):
    """A label map of the picture's size, whose label of a pixel depends on that pixel alone; or another one."""

    def __init__(self, turn: int = 0) -> None:
        super().__init__()
        self.turn = turn

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(self.turn, 1)


def test_label_maps_are_moved_back() -> None:
    one, other = Subject(Colours(), PLAIN, "maps"), Subject(Colours(1), PLAIN, "turned")
    assert agreement(one, one, pictures(), shifted=True).consistent_and_same.value == 1
    found = agreement(one, other, pictures(), shifted=True)
    assert found.consistent and found.consistent.value == 1
    assert found.consistent_and_same and found.consistent_and_same.value == 0
    assert found.confidence and found.confidence_other
    sure = seen().softmax(1).amax(1).double().mean((1, 2)).tolist()
    assert found.confidence.values == pytest.approx(sure, abs=1e-6)
    assert found.confidence_other.values == pytest.approx(sure, abs=1e-6)


def test_embeddings_across_a_shift_by_their_cosine() -> None:
    """A list of two embeddings, which are no classes."""

    def two(logits: Tensor) -> dict[str, Tensor]:
        return {"a": logits[:, :3], "b": logits[:, 3:].square()}

    one, other = subject(1, out=two), subject(2, out=two)
    first, second = crops(0)
    with torch.no_grad():
        wanted, own, its = one.model(first), one.model(second), other.model(second)
    found = agreement(one, other, pictures(), shifted=True, batch_size=5)
    assert found.same is None and found.consistent and found.consistent_and_same
    for estimate, there in ((found.consistent, own), (found.consistent_and_same, its)):
        slow = [sum(angle(wanted[key][n], there[key][n]) for key in "ab") / 2 for n in range(COUNT)]
        assert estimate.values == pytest.approx(slow, abs=1e-6)


def test_what_cannot_be_moved_back_is_not_compared_across_a_shift() -> None:
    one, other = (subject(seed, out=lambda logits: logits[:, None]) for seed in (1, 2))
    found = agreement(one, other, pictures(), shifted=True)
    assert found.relative_error and found.consistent is None and found.consistent_and_same is None


def test_no_room_to_shift() -> None:
    tight = Preprocessing(CROP, CROP, 3, (0.0,) * 3, (1.0,) * 3)
    one, other = (Subject(Net(seed), tight, "net") for seed in (1, 2))
    small = TensorPictures(pictures().canvases[:, :, :8, :6])
    with pytest.raises(BlurifyError, match="no room to shift"):
        agreement(one, other, small, shifted=True)
    assert agreement(one, other, small, shifted=True, circular=True).consistent_and_same


def test_where_the_original_is_never_sure_there_is_no_figure_for_it() -> None:
    assert agreement(subject(1, scale=0.01), subject(2), pictures()).sure is None


def angle(one: Tensor, other: Tensor) -> float:
    """The cosine of two vectors, by its definition."""
    a, b = one.flatten().tolist(), other.flatten().tolist()
    dot, *squares = (sum(x * y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (a, a), (b, b)))
    return dot / math.sqrt(squares[0] * squares[1])


def maps(logits: Tensor) -> dict[str, Any]:
    """A label map and, in a list, features on another scale; beside them numbers and what is no tensor."""
    return {
        "map": logits.reshape(-1, 7, 1, 1).expand(-1, 7, 2, 2) + 50,
        "features": [1000 * logits[:, :3].square(), logits.argmax(1)],
        "anchors": torch.arange(5.0),
        "name": "x",
    }


@pytest.mark.parametrize("batch_size", [5, 64])
def test_other_outputs_against_the_definition(batch_size: int) -> None:
    one, other = subject(1, out=maps), subject(2, out=maps)
    with torch.no_grad():
        here, there = (item.model(seen()) for item in (one, other))
    ratios = []
    for o, c in ((here["map"], there["map"]), (here["features"][0], there["features"][0])):
        mean = sum(o.double()) / COUNT
        error = sum(float((a - b).double().square().sum()) for a, b in zip(o, c, strict=True))
        ratios.append(error / sum(float((a - mean).square().sum()) for a in o))
    found = agreement(one, other, pictures(), batch_size=batch_size)
    assert found == Agreement(
        COUNT, relative_error=found.relative_error, cosine=found.cosine, original="net 1"
    )  # and none of classes
    pairs = ((here["map"], there["map"]), (here["features"][0], there["features"][0]))
    cosines = [sum(angle(a[n], b[n]) for a, b in pairs) / 2 for n in range(COUNT)]  # not of what has no row a picture
    assert found.cosine is not None and found.cosine.values == pytest.approx(cosines, abs=1e-6)
    assert found.relative_error == found.lost == pytest.approx(sum(ratios) / 2, rel=1e-4)
    assert agreement(one, one, pictures()).relative_error == 0 and agreement(one, one, pictures()).kept == 1


@pytest.mark.parametrize("wrap", [lambda found: found, lambda found: {"out": found, "aux": 2 * found}])
def test_label_maps_agree_by_the_position(wrap: Any) -> None:
    def shown(net: Any) -> Any:
        return lambda logits: wrap(torch.stack([logits, logits.roll(1, 0).square(), net * logits.sin()], -1)[..., None])

    one, other = subject(1, out=shown(1)), subject(2, out=shown(-1))
    found = agreement(one, other, pictures(), batch_size=64)
    with torch.no_grad():
        here, there = (item.model(seen()) for item in (one, other))
    here, there = (found["out"] if isinstance(found, dict) else found for found in (here, there))
    same = [
        sum(here[n, :, y, 0].tolist().index(max(here[n, :, y, 0].tolist()))
            == there[n, :, y, 0].tolist().index(max(there[n, :, y, 0].tolist())) for y in range(3)) / 3
        for n in range(COUNT)
    ]  # fmt: skip
    assert found.same_labels is not None and 0 < found.same_labels.value < 1
    assert found.same_labels.values == pytest.approx(same, abs=1e-6)
    assert found.relative_error is not None and found.kept == found.same_labels.value
    assert agreement(one, one, pictures()).same_labels.value == 1


def test_the_mean_answer_to_every_picture_has_an_error_of_one() -> None:
    def spread(logits: Tensor) -> Tensor:
        return logits[:, None]

    one = subject(1, out=spread)
    with torch.no_grad():
        mean = one.model(seen()).mean(0, keepdim=True)
    found = agreement(one, subject(1, out=lambda logits: mean.expand(len(logits), 1, 7)), pictures(), batch_size=5)
    assert found.relative_error == pytest.approx(1, rel=1e-5) and found.kept == pytest.approx(0, abs=1e-5)


def test_several_at_once_are_each_as_alone() -> None:
    others = [subject(2), subject(3)]
    assert agreements(subject(1), others, pictures()) == [agreement(subject(1), each, pictures()) for each in others]


def test_progress_and_the_mode_of_the_models() -> None:
    one, other, told = subject(1), subject(2), []
    one.model.train()
    agreement(one, other, pictures(), batch_size=10, watch=lambda *said: told.append(said))
    assert told == [("agreement", number, 3) for number in (1, 2, 3)]
    assert one.model.training


@pytest.mark.parametrize(
    ("one", "other", "count", "says"),
    [
        (subject(1), subject(2, out=lambda x: x[:, :5]), COUNT, "(23, 7)"),
        (subject(1), subject(2, out=lambda x: x * float("nan")), COUNT, "net 2 is not finite"),
        (subject(1, out=lambda x: x[:, None] / 0), subject(2, out=lambda x: x[:, None]), COUNT, "net 1 is not finite"),
        (subject(1, out=lambda x: x[:, None]), subject(2, out=lambda x: x[:, None]), 1, "at least 2"),
        (subject(1, out=lambda x: x.argmax(1)), subject(2), COUNT, "no tensor of floats"),
        (subject(1), subject(2), 0, "at least one"),
    ],
)
def test_what_cannot_be_compared(one: Subject, other: Subject, count: int, says: str) -> None:
    with pytest.raises(BlurifyError) as caught:
        agreement(one, other, pictures(count))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_kept_of_a_label_map_are_its_labels() -> None:
    """Twice the scores are the same labels, however far apart the numbers are."""
    torch.manual_seed(0)
    net = nn.Conv2d(1, 3, 1).eval()
    louder = copy.deepcopy(net)
    with torch.no_grad():
        louder.weight.mul_(2)
        louder.bias.mul_(2)
    used = Preprocessing((4, 4), (4, 4), 1, (0.0,), (1.0,))
    shown = TensorPictures(torch.rand(3, 1, 4, 4))
    found = agreement(Subject(net, used), Subject(louder, used), shown)
    assert found.kept == 1 and found.relative_error is not None and found.relative_error > 0.5
