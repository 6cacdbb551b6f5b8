"""`blurify demo`: the whole story on the embedded network and images."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from blurify.cli import console, options, report

if TYPE_CHECKING:
    from torch import Tensor

    from blurify.demo.shifts import Steadiness

ORIGINAL, CONVERTED, FINETUNED = "original", "converted", "converted, fine-tuned"
_MEANING = {
    ORIGINAL: "as trained",
    CONVERTED: "the same weights, anti-aliased",
    FINETUNED: "and trained for {epochs} more epochs",
}


def demo(json: options.Json = False) -> None:
    """The whole story in a minute: sites, proof, and how often a shift changes the answer, on embedded digits."""
    with console.working("converting the embedded network"):
        import torch

        import blurify
        from blurify import demo as embedded
        from blurify.demo import shifts

        torch.set_num_threads(1)  # so small a network is slower on several
        held, record = embedded.held_out(), embedded.training_record()
        original = embedded.trained_network()
        example = (shifts.place(held.images[:2], 6, 6),)
        converted = blurify.convert(original, example_inputs=example)
        finetuned = blurify.convert(embedded.trained_network(embedded.FINETUNED), example_inputs=example, verify=False)
        plan, proof = blurify.plan_of(converted), blurify.proof_of(converted)
        assert plan is not None and proof is not None  # that is what `convert` promises
    with console.working("shifting the held-out images"), torch.inference_mode():
        networks = {ORIGINAL: original, CONVERTED: converted, FINETUNED: finetuned}
        answers = {name: shifts.answers(model.eval(), held.images) for name, model in networks.items()}
        results = {name: shifts.steadiness(found, held.labels) for name, found in answers.items()}
    control = record["results"]["control"]["held_out"]

    if json:
        console.print_json(
            {
                "plan": plan.to_dict(),
                "totals": report.totals(plan),
                "proof": {**dataclasses.asdict(proof), "lines": proof.lines()},
                "images": len(held.labels),
                "results": {name: _plain(result) for name, result in results.items()},
                "control": control,
                "training": record,
            }
        )
        return
    console.say(f"A small network ({record['parameters']:,} weights) trained on scikit-learn's digits, converted:")
    report.print_plan(plan)
    console.say()
    for line in proof.lines():
        console.say(line, style="green")
    console.say()
    _print_picture(held.images, held.labels, answers)
    _print_results(results, record, control, len(held.labels))


def _print_results(
    results: dict[str, Steadiness], record: dict[str, Any], control: dict[str, Any], images: int
) -> None:
    epochs = record["settings"]["finetune_epochs"]
    positions = results[ORIGINAL].pairs[1] // (8 * images)
    console.say(
        f"Answers changed by a shift ({images} held-out digits, {positions} positions each, shifts in all directions):"
    )
    console.print_table(
        ("network", "by 1 pixel", "by 2 pixels", "accuracy", "what it is"),
        [
            (
                name,
                f"{result.changed[1]:.2%}",
                f"{result.changed[2]:.2%}",
                f"{result.accuracy:.1%}",
                _MEANING[name].format(epochs=epochs),
            )
            for name, result in results.items()
        ],
        right=("by 1 pixel", "by 2 pixels", "accuracy"),
        styles=["", "", "bold"],
    )
    console.say(
        f"The same {epochs} epochs without the conversion: {control['changed']['1']:.2%} and "
        f"{control['changed']['2']:.2%}, accuracy {control['accuracy']:.1%} (recorded at training)."
    )
    _print_other_seeds(record)
    console.say("Your own model: blurify inspect MODEL, then blurify convert MODEL -o OUT")


def _print_other_seeds(record: dict[str, Any]) -> None:
    """What the other trainings gave: conversion alone may cost accuracy, which the shipped network does not show."""
    others = record["other_seeds"]
    if not others:
        return
    cells = []
    for network, name in (
        ("trained", ORIGINAL),
        ("converted", CONVERTED),
        ("finetuned", "fine-tuned"),
        ("control", "not converted, same epochs"),
    ):
        found = [seed[network] for seed in others.values()]
        changed = sum(result["changed"]["1"] for result in found) / len(found)
        accuracy = sum(result["accuracy"] for result in found) / len(found)
        cells.append(f"{name} {changed:.2%} ({accuracy:.1%})")
    console.say(
        f"This network takes the conversion unusually well. Mean of {len(others)} others trained alike, by 1 pixel "
        f"(accuracy): {', '.join(cells)}. So fine-tune after converting."
    )


def _print_picture(images: Tensor, labels: Tensor, answers: dict[str, Tensor]) -> None:
    """One image where a one-pixel shift changes the original's answer and not the fine-tuned one's, if there is one."""
    from blurify.demo import shifts

    found = _example(answers, labels)
    if found is None:
        return
    index, (y, x), (dy, dx) = found
    first = shifts.place(images[index : index + 1], shifts.FIRST + y, shifts.FIRST + x)[0, 0]
    second = shifts.place(images[index : index + 1], shifts.FIRST + y + dy, shifts.FIRST + x + dx)[0, 0]
    where = " and ".join(
        f"one pixel {word}" for word in (_direction(dy, "up", "down"), _direction(dx, "left", "right")) if word
    )
    console.say(f"One held-out {int(labels[index])}, as it was and {where} (picked because its answer changes):")
    if console.on_terminal():
        for left, right in zip(_blocks(first), _blocks(second), strict=True):
            if not (left + right).isspace():
                console.say(f"  {left}    {right}")
    for name in (ORIGINAL, CONVERTED, FINETUNED):
        before, after = int(answers[name][y, x, index]), int(answers[name][y + dy, x + dx, index])
        line = f"  {name + ':':<23} {before} -> {after}"
        console.say(*((f"{line}  changed", "red") if before != after else (line, "green")))
    console.say()


def _example(answers: dict[str, Tensor], labels: Tensor) -> tuple[int, tuple[int, int], tuple[int, int]] | None:
    """(image, position, shift): the original is right, but wrong after the shift; the fine-tuned is right at both.

    Where the merely converted network is right at both as well, that image comes first.
    """
    from blurify.demo import shifts

    inner = range(shifts.REACH, shifts.WINDOW - shifts.REACH)
    for steady in ((CONVERTED, FINETUNED), (FINETUNED,)):
        for index, label in enumerate(labels.tolist()):
            for y in inner:
                for x in inner:
                    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)):
                        original = answers[ORIGINAL][:, :, index]
                        if original[y, x] != label or original[y + dy, x + dx] == label:
                            continue
                        others = [answers[name][:, :, index] for name in steady]
                        if all(other[y, x] == label and other[y + dy, x + dx] == label for other in others):
                            return index, (y, x), (dy, dx)
    return None


def _direction(step: int, minus: str, plus: str) -> str:
    return "" if step == 0 else plus if step > 0 else minus


def _blocks(picture: Tensor) -> list[str]:
    """A picture (H, W) in 0..1 as text of H/2 lines: two pixels a character, by half blocks."""
    dark = picture > 0.35
    rows = []
    for upper, lower in zip(dark[0::2].tolist(), dark[1::2].tolist(), strict=True):
        rows.append("".join(" ▄▀█"[2 * up + down] for up, down in zip(upper, lower, strict=True)))
    return rows


def _plain(result: Steadiness) -> dict[str, Any]:
    return dataclasses.asdict(result)
