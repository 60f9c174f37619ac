"""Verbs about files: recipes, info, pack, zoo."""

from pathlib import Path
from typing import Annotated

import typer

from nbsnn import console
from nbsnn.checkpoint import rebuild
from nbsnn.cli.app import Checkpoint, JsonOption, app
from nbsnn.cli.integer import show_integer
from nbsnn.errors import ConfigError
from nbsnn.export.packed import save_packed
from nbsnn.recipes import list_recipes, load_recipe
from nbsnn.summary import summarize, system_facts
from nbsnn.tensorfile import read_tensors
from nbsnn.zoo import PREFIX, list_zoo, locate


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Show this one whole.")] = None, json_: JsonOption = False) -> None:
    """List the bundled recipes, or show one with all its settings."""
    if name:
        recipe = load_recipe(name)
        console.show_json(recipe.to_dict() | {"hash": recipe.hash})
        return
    known = [load_recipe(known) for known in list_recipes()]
    if json_:
        console.show_json({r.name: r.to_dict() for r in known})
        return
    rows = [(r.name, r.model.name, r.data.name, " → ".join(r.phase), str(sum(p.epochs for p in r.phase.values())), r.hash)
            for r in known]  # fmt: skip
    console.show_table("Recipes", ("name", "model", "data", "bits", "epochs", "hash"), rows)


@app.command()
def info(
    checkpoint: Annotated[Path | None, typer.Argument(help="A checkpoint that nbsnn wrote.", metavar="[CHECKPOINT]")] = None,
    system: Annotated[bool, typer.Option("--system", help="Describe this machine and the versions instead.")] = False,
    json_: JsonOption = False,
) -> None:
    """Form, bits, layers and sizes of a checkpoint; or, with --system, what nbsnn runs on."""
    if system or checkpoint is None:
        if not system:
            raise ConfigError("info: name a checkpoint, or ask for --system")
        facts = system_facts()
        if json_:
            console.show_json(facts)
        else:
            console.show_table("System", ("what", "value"), ((key, str(value)) for key, value in facts.items()))
        return
    header, tensors = read_tensors(checkpoint)
    if header["form"] == "integer":
        show_integer(checkpoint, header, tensors, json_=json_)
        return
    size, parameters, layers = summarize(header, tensors)
    if json_:
        console.show_json(header | {"parameters": parameters, "bytes": size})
        return
    model = header["model"]["name"] if header["model"] else "own network"
    spiking = header["spiking"]
    extra = f", {spiking['neuron']} neurons, {spiking['schedule']} schedule, T = {spiking['timesteps']}" if spiking else ""
    console.out.print(f"{model}, {header['form']} form{extra}: {parameters:,} parameters, {size / 1e6:.2f} MB", highlight=False)
    versions = ", ".join(f"{key} {value}" for key, value in header["versions"].items())
    console.out.print(
        f"recipe {header['recipe_hash']}, seed {header['seed']}, {header['metrics']}, {versions}", highlight=False
    )
    console.show_table("Layers", ("layer", "weight", "bits", "detail"), layers)


@app.command()
def pack(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", "-o", help="The packed file, .safetensors.")],
    json_: JsonOption = False,
) -> None:
    """Write a quantized network as bit-packed integer weights, norms and thresholds, with its provenance and a hash.

    Its logits are equal bit for bit. Other verbs take it as they take a checkpoint, but its weights
    are not trained any more. Example:
    nbsnn pack runs/r20/2bit/best.safetensors --out resnet20-w2a2.safetensors
    """
    header, tensors = read_tensors(checkpoint)
    size = save_packed(out, rebuild(header, tensors, source=str(checkpoint)), origin=header)
    before = locate(checkpoint).stat().st_size
    if json_:
        console.show_json({"packed": str(out), "bytes": size, "checkpoint_bytes": before})
        return
    console.out.print(f"{out}: {size / 1e3:.0f} kB, {before / size:.1f} times smaller than the checkpoint", highlight=False)


@app.command()
def zoo(json_: JsonOption = False) -> None:
    """List the bundled networks; each verb takes them by name, such as zoo:cifar10/resnet20-w2a2."""
    entries = []
    for name in list_zoo():
        header, _ = read_tensors(Path(PREFIX + name))
        size = locate(PREFIX + name).stat().st_size
        entries.append({"name": PREFIX + name, "recipe_hash": header["recipe_hash"], "seed": header["seed"],
                        "bytes": size, **header["metrics"]})  # fmt: skip
    if json_:
        console.show_json(entries)
        return
    columns = ("name", "kB", "epochs", "validation top-1 %", "recipe", "seed")
    rows = ((e["name"], f"{e['bytes'] / 1e3:.0f}", str(e["epoch"]), f"{e['validation_top1']:.2f}",
             str(e["recipe_hash"]), str(e["seed"])) for e in entries)  # fmt: skip
    console.show_table("Bundled networks", columns, rows)
