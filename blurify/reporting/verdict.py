"""The verdict: what the figures and their intervals allow to say, in one sentence, and no more than that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from blurify.metrics.differences import FEWEST, Difference
from blurify.metrics.results import Agreement, Estimate, Measurement
from blurify.reporting import words
from blurify.reporting.content import Report, agreement_of, less_sure

KEEPS = 0.9
"""The share of the original's answers that a conversion must keep to be of use in the original's place."""
CLOSE = 0.02
"""Differences that are smaller than that, at either end of their interval, are called none."""
_WIDE = 0.2  # of an interval: no figure to go by

_SAYS_NOTHING = "All of these pictures get the same answer, which says nothing of shifts"

Tone = Literal["good", "bad", "open"]


@dataclass(frozen=True)
class Verdict:
    """One sentence: what it comes to, and what that rests on.

    Attributes:
        lead: the first words.
        text: the rest, without the full stop.
        tone: 'good' and 'bad' where the figures are clear, else 'open'.
    """

    lead: str
    text: str
    tone: Tone

    @property
    def sentence(self) -> str:
        """All of it."""
        return f"{self.lead}: {self.text}."


@dataclass(frozen=True)
class Change:
    """A figure before and after, and how far they are apart."""

    before: Estimate
    after: Estimate
    difference: Difference | None = None


@dataclass(frozen=True)
class Other:
    """What is known of a model beside the first one.

    Attributes:
        role: what it is called: 'converted', 'adapted', 'second'.
        agreement: with the first.
        steady: how often two crops get the same answer.
        accuracy: where there are labels.
        adapted: it was adapted, or trained, after its conversion.
        one_answer: it gives every picture the same answer.
    """

    role: str
    agreement: Agreement | None = None
    steady: Change | None = None
    accuracy: Change | None = None
    adapted: bool = False
    one_answer: bool = False


def verdict(report: Report) -> Verdict | None:
    """The verdict on a report; None where nothing was measured that would allow one."""
    first, *rest = report.measurements
    if report.differences:
        names = " and ".join(report.differences)
        return Verdict("No verdict", f"the models were not measured alike ({names} differ)", "open")
    steady = first.consistency.agreement if first.consistency else None
    if not rest:
        flips = first.consistency.pixel_flips if first.consistency else None
        return alone(steady, flips, converted=first.converted, one_answer=_one_answer(first))
    related = report.roles[0] in ("before", "original")
    records = report.adapted or (None,) * len(report.measurements)
    others = []
    for index, (measured, record) in enumerate(zip(rest, records[1:], strict=True)):
        known = report.compared[index]
        changes: dict[str, Change | None] = {}
        for name in ("agreement", "accuracy"):
            one, other = (getattr(item.consistency, name, None) for item in (first, measured))
            found = known.get(f"consistency.{name}")
            changes[name] = Change(one, other, found) if one is not None and other is not None else None
        adapted = record is not None or (measured.converted and not report.same_weights and not len(rest) > 1)
        role = report.roles[index + 1] if len(rest) > 1 or not related else "converted"
        others.append(
            Other(
                role, agreement_of(report, index + 1), changes["agreement"], changes["accuracy"], adapted=adapted,
                one_answer=_one_answer(measured),
            )
        )  # fmt: skip
    return of_conversion(others) if related else of_several(others)


def _one_answer(found: Measurement) -> bool:
    return found.consistency is not None and found.consistency.always_the_same


def alone(
    steady: Estimate | None, flips: Estimate | None, *, converted: bool = False, one_answer: bool = False
) -> Verdict | None:
    """Of one model by itself there is no better or worse: only how steady it is, and how surely that is known.

    Args:
        steady: how often two crops get the same answer.
        flips: how often a shift of one pixel gives another.
        converted: it is anti-aliased by blurify.
        one_answer: it gives every picture the same answer.
    """
    if steady is None or not math.isfinite(steady.value):
        return None
    parts = [f"two crops of a picture get the same answer in {_share(steady)} of {_count(steady)}"]
    if flips is not None:
        parts.append(f"and a shift of one pixel changes it in {_share(flips)}")
    if one_answer:
        return Verdict(_SAYS_NOTHING, " ".join(parts), "open")
    if steady.high - steady.low > _WIDE:
        return Verdict("Too few pictures to say how steady it is", " ".join(parts), "open")
    if converted:
        parts.append("; whether that is better than before takes the original beside it")
    lead = "It changes its answer under shifts" if steady.high < 1 - CLOSE else "It hardly changes its answer"
    return Verdict(lead, " ".join(parts).replace(" ;", ";"), "open")


def of_conversion(others: Sequence[Other]) -> Verdict | None:
    """Of a model's conversion, adapted or not: first whether it still answers as before, then how steady it is.

    A conversion that lost its answers may well be steady: it is not called better for that.
    """
    last = others[-1]
    before = [f"{other.role} alone, {_kept(other)}" for other in others[:-1] if _kept(other)]
    kept, holds = _kept(last), _holds(last)
    steadier = _direction(last.steady)
    parts = [*before, f"{last.role}, {kept}" if before and kept else kept, _accuracy(last), _steady(last)]
    text = "; ".join(part for part in parts if part)
    if not text:
        return None
    if holds is False:
        worse = last.accuracy is not None and _direction(last.accuracy) == "worse"
        if last.adapted:
            lead = (
                "Less accurate than the original" if worse else "Too many answers changed to take the original’s place"
            )
        else:
            lead = f"{'Less accurate' if worse else 'Not ready for use'} until it is adapted or fine-tuned"
        return Verdict(lead, text, "bad")
    if last.one_answer:
        return Verdict(_SAYS_NOTHING, text, "open")
    if holds is None:
        if last.agreement is None and last.accuracy is None:
            lead, tone = _leads(steadier)
            text = f"{text}; whether it still answers as before was not measured"
            return Verdict(lead, text, "open" if tone == "good" else tone)
        return Verdict("Too few pictures to say whether it answers as before", text, "open")
    what = "keeps its accuracy" if _by_accuracy(last) else "answers as before"
    leads: dict[str, tuple[str, Tone]] = {
        "better": (f"Steadier under shifts, and it {what}", "good"),
        "worse": (f"It {what}, but is less steady under shifts", "bad"),
        "none": (f"It {what}, and is as steady as before", "open"),
        "few": (f"It {what}; too few pictures to say whether it is steadier", "open"),
        "": (f"It {what}", "open"),
    }
    lead, tone = leads[steadier]
    return Verdict(lead, text, tone)


def of_several(others: Sequence[Other]) -> Verdict | None:
    """Of models that are not each other's conversions: which is the steadier, where that is clear."""
    parts = [f"{other.role}, {_steady(other)}" for other in others if _steady(other)]
    if not parts:
        return None
    if any(other.one_answer for other in others):
        return Verdict("One of the models gives every picture the same answer", "; ".join(parts), "open")
    directions = {_direction(other.steady) for other in others}
    if len(others) > 1:
        return Verdict("Beside the first", "; ".join(parts), "open")
    lead, tone = _leads(directions.pop())
    named = {"Steadier under shifts": "The second is steadier", "Less steady under shifts": "The second is less steady"}
    return Verdict(named.get(lead, lead), _steady(others[0]), tone)


def _leads(direction: str) -> tuple[str, Tone]:
    leads: dict[str, tuple[str, Tone]] = {
        "better": ("Steadier under shifts", "good"),
        "worse": ("Less steady under shifts", "bad"),
        "none": ("No difference under shifts", "open"),
    }
    return leads.get(direction, ("Too few pictures to say whether it is steadier", "open"))


def _by_accuracy(other: Other) -> bool:
    """Trained further with labels at hand, a model is judged by them: its answers may differ for the better."""
    return other.adapted and other.accuracy is not None


def _holds(other: Other) -> bool | None:
    """Whether it still does what the original did; None where the figures allow neither."""
    if other.accuracy is not None:
        if _direction(other.accuracy) == "worse":
            return False
        if _by_accuracy(other):
            return True if _direction(other.accuracy) in ("better", "none") else None
    found = other.agreement
    same = (found.same or found.same_labels) if found is not None else None
    if found is not None and found.same is None and found.images < FEWEST:
        return None  # of shares and errors, so few pictures give no interval to rely on
    if found is not None and same is None and found.relative_error is not None:
        return found.relative_error <= 1 - KEEPS
    if same is None:
        return None
    return False if same.high < KEEPS else True if same.low >= KEEPS else None


def _direction(change: Change | None) -> str:
    """'better' | 'worse' | 'none' (no difference worth the name) | 'few' (pictures); '' where it was not measured."""
    found = change.difference if change is not None else None
    if found is None or not math.isfinite(found.value):
        return "" if change is None else "few"
    if getattr(found, "caveat", ""):  # it is not what it looks like
        return ""
    if found.clear and found.n >= FEWEST:
        return "better" if found.value > 0 else "worse"
    return "none" if max(abs(found.low), abs(found.high)) <= CLOSE else "few"


def _kept(other: Other) -> str:
    found = other.agreement
    if found is None:
        return ""
    if found.same is not None:
        return f"the original’s answer on {_share(found.same)} of {_count(found.same)}"
    if found.same_labels is not None:
        return f"the original’s label at {_share(found.same_labels)} of the positions in {_count(found.same_labels)}"
    if found.relative_error is not None:
        return f"a relative error of {found.relative_error:.3g} in the outputs"
    return ""


def _accuracy(other: Other) -> str:
    if other.accuracy is None:
        return ""
    return f"accuracy {_change(other.accuracy)}"


def _steady(other: Other) -> str:
    if other.steady is None:
        return ""
    text = f"two crops get the same answer in {_change(other.steady)}"
    found = other.agreement
    if less_sure(found) and found is not None and found.confidence and found.confidence_other:
        before, after = found.confidence, found.confidence_other  # what is unsure moves little, too
        text += f"; it is less sure of its answers, {words.percent(before.value)} → {words.percent(after.value)}"
    return text


def _change(change: Change) -> str:
    text = f"{words.percent(change.before.value)} → {words.percent(change.after.value)}"
    found = change.difference
    if found is None or not math.isfinite(found.value):
        return text
    if found.n < FEWEST:
        return f"{text} (fewer than {FEWEST} pictures, so no interval)"
    return f"{text} (change {words.points(found.low)} to {words.points(found.high)} points)"


def _share(item: Estimate) -> str:
    return f"{words.percent(item.value)} (95% interval {words.interval(item)})"


def _count(item: Estimate) -> str:
    return f"{item.count} picture{'s' * (item.count != 1)}"
