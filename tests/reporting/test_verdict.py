"""The verdict: a table of cases, and what it must never say."""

from __future__ import annotations

import dataclasses

import pytest

from blurify.metrics.differences import compared
from blurify.metrics.results import Agreement, Estimate
from blurify.reporting import Report
from blurify.reporting.verdict import Change, Other, alone, of_conversion, of_several, verdict
from blurify.spec.adapted import Adapted, Stage
from tests.report_data import agreement, evidence, measurement, plan


def yes(right: int, count: int) -> Estimate:
    """So many yes of so many pictures."""
    return Estimate.of([float(index < right) for index in range(count)])


def change(before: int, after: int, count: int) -> Change:
    """Paired: whoever is right before is right after, or the other way round."""
    one, other = yes(before, count), yes(after, count)
    return Change(one, other, compared({"": (one, other)})[""])


def kept(same: int, count: int) -> Agreement:
    return Agreement(count, same=yes(same, count))


CASES = {
    "lost its answers": (
        [Other("converted", kept(15, 40), change(20, 30, 40))],
        "bad", "Not ready for use until it is adapted or fine-tuned",
        "the original’s answer on 37.5% (95% interval 24.2 to 53.0%) of 40 pictures; two crops get the same answer in "
        "50.0% → 75.0%",
    ),
    "steady because it says one thing only": (
        [Other("converted", kept(0, 100), change(50, 100, 100))],
        "bad", "Not ready for use until it is adapted or fine-tuned", "the original’s answer on 0.0%",
    ),
    "keeps and is steadier": (
        [Other("converted", kept(396, 400), change(340, 370, 400))],
        "good", "Steadier under shifts, and it answers as before", "85.0% → 92.5% (change +",
    ),
    "keeps, no difference": (
        [Other("converted", kept(400, 400), change(300, 300, 400))],
        "open", "It answers as before, and is as steady as before", "75.0% → 75.0%",
    ),
    "keeps, less steady": (
        [Other("converted", kept(400, 400), change(370, 340, 400))],
        "bad", "It answers as before, but is less steady under shifts", "92.5% → 85.0%",
    ),
    "keeps, too few pictures for the rest": (
        [Other("converted", kept(60, 60), change(50, 52, 60))],
        "open", "It answers as before; too few pictures to say whether it is steadier", "",
    ),
    "too few pictures for anything": (
        [Other("converted", kept(9, 10), change(5, 9, 10))],
        "open", "Too few pictures to say whether it answers as before", "of 10 pictures",
    ),
    "one picture": (
        [Other("converted", kept(1, 1), change(1, 1, 1))],
        "open", "Too few pictures to say whether it answers as before", "fewer than 6 pictures, so no interval",
    ),
    "adapted, after a conversion that lost them": (
        [Other("converted", kept(48, 400)), Other("adapted", kept(388, 400), change(340, 370, 400), adapted=True)],
        "good", "Steadier under shifts, and it answers as before",
        "converted alone, the original’s answer on 12.0% (95% interval 9.2 to 15.6%) of 400 pictures; adapted, the "
        "original’s answer on 97.0%",
    ),
    "adapted, still too far": (
        [Other("adapted", kept(280, 400), change(340, 370, 400), adapted=True)],
        "bad", "Too many answers changed to take the original’s place", "70.0%",
    ),
    "trained further: accuracy counts, not the old answers": (
        [Other("converted", kept(280, 400), change(340, 370, 400), change(280, 300, 400), adapted=True)],
        "good", "Steadier under shifts, and it keeps its accuracy", "accuracy 70.0% → 75.0%",
    ),
    "trained further, and worse": (
        [Other("converted", kept(380, 400), change(340, 370, 400), change(300, 270, 400), adapted=True)],
        "bad", "Less accurate than the original", "accuracy 75.0% → 67.5%",
    ),
    "same weights, less accurate": (
        [Other("converted", kept(395, 400), change(340, 370, 400), change(300, 270, 400))],
        "bad", "Less accurate until it is adapted or fine-tuned", "",
    ),
    "nothing but steadiness": (
        [Other("converted", None, change(340, 370, 400))],
        "open", "Steadier under shifts", "whether it still answers as before was not measured",
    ),
    "a dense model": (
        [Other("converted", Agreement(30, relative_error=0.4, same_labels=Estimate(0.55, 0.5, 0.6, 30)))],
        "bad", "Not ready for use until it is adapted or fine-tuned",
        "the original’s label at 55.0% (95% interval 50.0 to 60.0%) of the positions in 30 pictures",
    ),
    "a dense model, on three pictures": (
        [Other("converted", Agreement(3, relative_error=0.0, same_labels=Estimate(1.0, 1.0, 1.0, 3)))],
        "open", "Too few pictures to say whether it answers as before", "in 3 pictures",
    ),
    "other outputs": (
        [Other("converted", Agreement(30, relative_error=0.02))],
        "open", "It answers as before", "a relative error of 0.02 in the outputs",
    ),
    "the same answer to everything": (
        [Other("converted", kept(400, 400), change(400, 400, 400), one_answer=True)],
        "open", "All of these pictures get the same answer, which says nothing of shifts", "100.0% → 100.0%",
    ),
    "the same answer to everything, and not the original's": (
        [Other("converted", kept(10, 400), change(300, 400, 400), one_answer=True)],
        "bad", "Not ready for use until it is adapted or fine-tuned", "",
    ),
    "less sure": (
        [Other("converted", agreement(0.99, 400), change(340, 370, 400))],
        "good", "Steadier under shifts", "it is less sure of its answers, 62.0% → 40.0%",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_conversions(case: str) -> None:
    others, tone, lead, text = CASES[case]
    found = of_conversion(others)
    assert found is not None
    assert (found.tone, found.lead.startswith(lead)) == (tone, True), found.sentence
    assert text in found.text
    assert found.sentence.count(". ") == 0 and found.sentence.endswith(".")  # one sentence


def test_nothing_is_said_of_nothing() -> None:
    assert of_conversion([Other("converted")]) is None and of_several([Other("second")]) is None
    assert alone(None, None) is None and alone(Estimate(float("nan"), 0, 1, 3), None) is None


@pytest.mark.parametrize(
    ("steady", "lead"),
    [
        (yes(300, 400), "It changes its answer under shifts"),
        (yes(1000, 1000), "It hardly changes its answer"),
        (yes(8, 10), "Too few pictures to say how steady it is"),
    ],
)
def test_one_model_alone(steady: Estimate, lead: str) -> None:
    found = alone(steady, yes(40, 400))
    assert found is not None and found.lead == lead and found.tone == "open"
    assert "a shift of one pixel changes it in 10.0%" in found.text and "better" not in found.sentence
    after = alone(steady, None, converted=True)
    assert after is not None and (lead.startswith("Too few") or "takes the original beside it" in after.text)


def test_who_always_answers_the_same_is_not_called_steady() -> None:
    same = measurement()
    assert same.consistency is not None
    same = dataclasses.replace(same, consistency=dataclasses.replace(same.consistency, answers=1))
    found = verdict(Report((same,), plan()))
    assert found is not None and found.lead.startswith("All of these pictures get the same answer")
    other = of_several([Other("second", None, change(340, 370, 400), one_answer=True)])
    assert other is not None and other.tone == "open" and "same answer" in other.lead


@pytest.mark.parametrize(
    ("steady", "lead", "tone"),
    [
        (change(340, 370, 400), "The second is steadier", "good"),
        (change(370, 340, 400), "The second is less steady", "bad"),
        (change(300, 300, 400), "No difference under shifts", "open"),
        (change(30, 31, 40), "Too few pictures to say whether it is steadier", "open"),
    ],
)
def test_two_models_of_nothing_in_common(steady: Change, lead: str, tone: str) -> None:
    found = of_several([Other("second", None, steady)])
    assert found is not None and (found.lead, found.tone) == (lead, tone)


BEFORE, AFTER = measurement(), measurement(converted=True)


def test_of_a_report() -> None:
    pair = Report((BEFORE, AFTER), plan(), same_weights=True, evidence=evidence(2))
    found = verdict(pair)
    assert found is not None and found.tone == "bad" and found.lead.startswith("Not ready for use")
    # A file of before has no agreement: fine-tuned, by its labels; else nothing is said of its answers.
    by_labels = verdict(Report((BEFORE, AFTER), plan()))
    assert by_labels is not None and by_labels.lead == "Steadier under shifts, and it keeps its accuracy"
    bare = [
        dataclasses.replace(item, consistency=dataclasses.replace(item.consistency, accuracy=None))
        for item in (BEFORE, AFTER)
        if item.consistency
    ]
    unknown = verdict(Report((bare[0], bare[1]), plan()))
    assert unknown is not None and "was not measured" in unknown.text and unknown.tone == "open"
    (one,) = [verdict(Report((BEFORE,), plan()))]
    assert one is not None and one.lead == "It changes its answer under shifts"
    assert verdict(Report((dataclasses.replace(BEFORE, consistency=None),))) is None


def test_three_models_are_judged_by_the_last() -> None:
    record = Adapted("d", 1, 1, "classes", (Stage("converted", "", 0.0, 1.0, 0.3),))
    three = Report(
        (BEFORE, AFTER, AFTER), plan(), adapted=(None, None, record), same_weights=True, evidence=evidence(3)
    )
    found = verdict(three)
    assert found is not None and found.tone == "good" and found.lead.startswith("Steadier under shifts, and it keeps")
    assert "converted alone, the original’s answer on 37.5%" in found.text


def test_what_was_not_measured_alike_gets_no_verdict() -> None:
    other = dataclasses.replace(AFTER, settings={**AFTER.settings, "seed": 3})
    found = verdict(Report((BEFORE, other), plan(), evidence=evidence(2)))
    assert found is not None and found.lead == "No verdict" and "seed" in found.text and found.tone == "open"
