"""`nbsnn energy`."""

from typing import Annotated

import typer

from nbsnn import console, pipeline
from nbsnn.cli.app import app
from nbsnn.cli.networks import images_for, load, only_quantized
from nbsnn.cli.options import (
    DataOption,
    DownloadOption,
    JsonOption,
    NeuronOption,
    OwnArgsOption,
    OwnOption,
    QuantizedCheckpoint,
    RootOption,
    SplitOption,
    between,
)
from nbsnn.cli.own import Own
from nbsnn.energy.ledger import EnergyLedger, energy_ledger
from nbsnn.energy.prices import list_energy_models, load_energy_model
from nbsnn.energy.pricing import Energy, price
from nbsnn.integer.network import IntegerNetwork
from nbsnn.spiking.schedules import check_pair


@app.command()
def energy(
    checkpoint: QuantizedCheckpoint,
    neuron: NeuronOption = None,
    schedule: Annotated[str, typer.Option("--schedule", help="fixed, settle or barrier.")] = "fixed",
    prices: Annotated[
        list[str],
        typer.Option("--prices", metavar="NAME|FILE", help="An energy model by name, or your TOML file; repeatable."),
    ] = [],  # noqa: B006
    limit: Annotated[int, typer.Option("--limit", callback=between(1), help="Count on the first N images.")] = 100,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer's counts and break-even activity.")] = False,
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    data: DataOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    split: SplitOption = "test",
    json_: JsonOption = False,
) -> None:
    """Count spikes, additions, memory accesses and products, and price them.

    The quantized network with the same bits is counted and priced too; the comparison with it is the fair one. Without
    --prices, all models of the package are shown.

    \b
    Examples:
      nbsnn energy zoo:cifar10/resnet20-w2a2 --data sample --layers
      nbsnn energy zoo:cifar10/resnet20-w2a2 --data sample --schedule settle
    """
    models = [load_energy_model(name) for name in prices or list_energy_models()]
    pair = check_pair(neuron, schedule)
    network, header = load(checkpoint, "cpu", Own(model, model_args))
    if not isinstance(network, IntegerNetwork):
        network = only_quantized(network, checkpoint, "energy")
    images = images_for(header, split, limit, data=data, root=root, download=download, network=network)
    with console.doing("lowering to an integer network"):
        integer = network if isinstance(network, IntegerNetwork) else pipeline.integer_form(network, images)
    with console.image_progress(len(images), "counting") as tell:
        ledger = energy_ledger(
            integer, images.normalized(), neuron=pair[0], schedule=pair[1], progress=lambda count: tell("", count)
        )
    energies = [price(ledger, table) for table in models]
    if json_:
        console.show_json({
            "checkpoint": str(checkpoint), "ledger": ledger.to_dict(), "energies": [found.to_dict() for found in energies]
        })  # fmt: skip
        return
    title = f"{checkpoint}, {ledger.neuron} {ledger.schedule}, T = {ledger.timesteps}, {ledger.images} images"
    _show_counts(title, ledger)
    _show_energies(energies)
    if layers:
        _show_layers(ledger, energies)


def _show_counts(title: str, ledger: EnergyLedger) -> None:
    words = {
        "spikes": "spikes", "additions": "synaptic additions", "weight_fetches": "weight fetches",
        "arrivals": "spikes received", "updates": "membrane reads and writes",
        "constant_additions": "additions of bias and image",
        "image_products": "products with the image, once", "rescalings": "products where branches meet",
        "macs": "quantized: products", "skips": "quantized: additions of skips",
    }  # fmt: skip
    rows = [(text, f"{ledger.totals[key] / ledger.images:,.0f}") for key, text in words.items()]
    rows.insert(7, (f"products with the image, in {ledger.timesteps} steps",
                    f"{ledger.timesteps * ledger.totals['image_products'] / ledger.images:,.0f}"))  # fmt: skip
    console.show_table(title, ("counted", "per image"), rows)


def _show_energies(energies: list[Energy]) -> None:
    rows = [
        (e.model.name, e.model.unit, f"{e.spiking:,.0f}", f"{e.quantized:,.0f}", console.or_dash(e.ratio, ".3f"),
         f"{e.unquantized:,.0f}", console.or_dash(e.float_ratio, ".3f"))
        for e in energies
    ]  # fmt: skip
    columns = ("model", "unit", "spiking", "quantized", "ratio", "float", "ratio to float")
    console.show_table("Energy per image; the ratio is to the quantized network with the same bits", columns, rows)


def _show_layers(ledger: EnergyLedger, energies: list[Energy]) -> None:
    rows = []
    for index, layer in enumerate(ledger.layers):
        found = [energy.layers[index].break_even for energy in energies]
        rows.append((layer.name, f"{int(layer.additions.sum()) / ledger.images:,.0f}", console.or_dash(layer.activity, ".3f"),
                     *(console.or_dash(value, ".3f") for value in found)))  # fmt: skip
    columns = ("layer", "additions", "spikes per synapse", *(f"break-even, {energy.model.name}" for energy in energies))
    console.show_table("Spikes per synapse and image; below the break-even activity spikes cost less", columns, rows)
