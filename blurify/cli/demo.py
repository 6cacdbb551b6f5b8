"""`blurify demo`: the whole story on the embedded network and images."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from blurify.cli import console, options, plans
from blurify.cli.tables import Column, print_table

if TYPE_CHECKING:
    from torch import Tensor

    from blurify.demo.shifts import Steadiness

ORIGINAL, CONVERTED, FINETUNED, CONTROL = "original", "converted", "converted, fine-tuned", "control"
_MEANING = {
    ORIGINAL: "as trained",
    CONVERTED: "the same weights, which never saw blurred features",
    FINETUNED: "and trained for {epochs} more epochs",
    CONTROL: "not converted, trained for the same {epochs} epochs (recorded at training)",
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
    control = record["results"]["control"]["held_out"]  # its weights are not shipped

    if json:
        console.print_json(
            {
                "plan": plan.to_dict(),
                "totals": plans.totals(plan),
                "proof": {**dataclasses.asdict(proof), "lines": proof.lines()},
                "images": len(held.labels),
                "results": {name: _plain(result) for name, result in results.items()},
                "control": control,
                "training": record,
            }
        )
        return
    console.say(f"A small network ({record['parameters']:,} weights) trained on scikit-learn's digits, converted:")
    plans.print_plan(plan)
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
    shown = {name: (result.changed[1], result.changed[2], result.accuracy) for name, result in results.items()}
    shown[CONTROL] = control["changed"]["1"], control["changed"]["2"], control["accuracy"]
    print_table(
        (
            Column("network"),
            Column("by 1 pixel", right=True),
            Column("by 2 pixels", right=True),
            Column("accuracy", right=True),
            Column("what it is", prose=True, use=1),
        ),
        [
            (name, f"{one:.2%}", f"{two:.2%}", f"{accuracy:.1%}", _MEANING[name].format(epochs=epochs))
            for name, (one, two, accuracy) in shown.items()
        ],
        styles=["", "", "bold", ""],
    )
    _print_other_seeds(record)
    console.say(_conclusion(shown[FINETUNED], shown[CONTROL]))
    console.say("Your own model: blurify inspect MODEL, then blurify convert MODEL -o OUT")


def _print_other_seeds(record: dict[str, Any]) -> None:
    """What other trainings with the same settings gave, in a line."""
    others = record["other_seeds"]
    if not others:
        return
    cells = []
    for network, name in (
        ("trained", ORIGINAL),
        ("converted", CONVERTED),
        ("finetuned", "fine-tuned"),
        ("control", CONTROL),
    ):
        found = [seed[network] for seed in others.values()]
        changed = sum(result["changed"]["1"] for result in found) / len(found)
        accuracy = sum(result["accuracy"] for result in found) / len(found)
        cells.append(f"{name} {changed:.2%} ({accuracy:.1%})")
    console.say(f"Mean of {len(others)} other seeds, by 1 pixel (accuracy): {', '.join(cells)}")


def _conclusion(tuned: tuple[float, float, float], control: tuple[float, float, float]) -> str:
    """What the conversion did beyond the epochs, whichever way it went, from (by 1 pixel, by 2 pixels, accuracy).

    Every word follows from the figures, so that retraining the network cannot make the sentence false.
    """
    by_one, by_two = (_compared(ours, theirs) for ours, theirs in zip(tuned[:2], control[:2], strict=True))
    points = round(100 * (tuned[2] - control[2]), 1)
    accuracy = "as accurate" if points == 0 else f"{abs(points):.1f} points {'more' if points > 0 else 'less'} accurate"
    return (
        f"Trained equally long, the converted network changes {by_one} answers than the control by 1 pixel and "
        f"{by_two} by 2, and is {accuracy}."
    )


def _compared(ours: float, theirs: float) -> str:
    """`30% fewer` for 0.7 against 1."""
    if theirs == 0:
        return "0% fewer" if ours == 0 else "more"
    share = round(100 * (ours / theirs - 1))
    return f"{abs(share)}% {'fewer' if share <= 0 else 'more'}"


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
    console.say(
        f"One held-out {int(labels[index])}, as it was and {where} "
        "(picked because the original changes its answer and the fine-tuned network does not):"
    )
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

    The merely converted network has no say in the choice, whatever it answers.
    """
    from blurify.demo import shifts

    inner = range(shifts.REACH, shifts.WINDOW - shifts.REACH)
    for index, label in enumerate(labels.tolist()):
        original, tuned = answers[ORIGINAL][:, :, index], answers[FINETUNED][:, :, index]
        for y in inner:
            for x in inner:
                for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)):
                    if original[y, x] != label or original[y + dy, x + dx] == label:
                        continue
                    if tuned[y, x] == label and tuned[y + dy, x + dx] == label:
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
