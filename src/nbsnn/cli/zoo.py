"""`nbsnn zoo`."""

from pathlib import Path

from nbsnn import console
from nbsnn.cli.app import app
from nbsnn.cli.options import JsonOption
from nbsnn.tensorfile import read_network
from nbsnn.zoo import PREFIX, list_zoo, locate


@app.command()
def zoo(json_: JsonOption = False) -> None:
    """List the bundled networks, which are packed.

    report, eval, convert, compare, lower, export, bench, energy, classify, finetune and info take their names instead of
    a file.

    \b
    Examples:
      nbsnn zoo
      nbsnn eval zoo:cifar10/resnet20-w2a2 --data sample
    """
    entries = []
    for name in list_zoo():
        header, _ = read_network(Path(PREFIX + name))
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
