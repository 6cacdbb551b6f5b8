"""`blurify recipes`: the recipes that are shipped, or one of them as the file that it is."""

from __future__ import annotations

from typing import Annotated

import typer

from blurify.cli import console, options
from blurify.cli.tables import Column, print_table


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="One of them: print its file, to begin one of your own with.", show_default=False,
            autocompletion=options.complete_recipe,
        ),
    ] = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """List the recipes that --recipe takes by name; with a NAME print it, as TOML.

    A recipe says which sites are blurred, where, and with which filter. Your own is a TOML file: begin with one of
    these (blurify recipes light > mine.toml), and give it as --recipe mine.toml.
    """
    from blurify.spec.recipes import DEFAULT, load_recipe, recipe_names, recipe_text

    if name is not None:
        recipe = load_recipe(name)
        if json:
            console.print_json(recipe.to_dict())
        else:
            print(recipe_text(name).rstrip())
        return
    found = [load_recipe(one) for one in recipe_names()]
    if json:
        console.print_json([{"name": one.name, "description": one.description} for one in found])
        return
    rows = [(one.name, one.description + (" (the default)" if one.name == DEFAULT else "")) for one in found]
    columns = (Column("recipe"), Column("what it does", prose=True))
    print_table(columns, rows, wide=not console.on_terminal())
