"""`nbsnn recipes`."""

from typing import Annotated

import typer

from nbsnn import console
from nbsnn.cli.app import app
from nbsnn.cli.options import JsonOption
from nbsnn.recipes import list_recipes, load_recipe


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe or TOML file to show in full.")] = None,
    json_: JsonOption = False,
) -> None:
    """List the bundled recipes, or show one with all its settings, as JSON.

    \b
    Examples:
      nbsnn recipes
      nbsnn recipes cifar10/resnet20:fast
    """
    if name:
        recipe = load_recipe(name)
        console.show_json(recipe.to_dict() | {"hash": recipe.hash})
        return
    known = [load_recipe(known) for known in list_recipes()]
    if json_:
        console.show_json({r.name: r.to_dict() for r in known})
        return
    rows = [(r.name, r.model.name, r.data.name, "→".join(r.phase), str(sum(p.epochs for p in r.phase.values())), r.hash)
            for r in known]  # fmt: skip
    console.show_table("Recipes", ("name", "model", "data", "bits", "epochs", "hash"), rows)
