"""The sections of docs/results.md, one function for each kind of figures in benchmarks/results."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nbsnn.figures import COLUMNS, table_rows
from nbsnn.recipe import FLOAT_BITS, Recipe, recipe_from_dict
from nbsnn.recipes import list_recipes, load_recipe

CHART = "sweep.svg"  # beside the page


def markdown(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table."""
    head = list(columns)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def departures(recipe: Recipe) -> list[str]:
    """The key=value overrides that make the bundled recipe of its name into this one; none where no bundled one has the name.

    Phases that this one lacks, and where the data lies, do not count.
    """
    if recipe.name not in list_recipes():
        return []
    bundled, own = (dict(_settings(r.to_dict(places=False))) for r in (load_recipe(recipe.name), recipe))
    return [f"{key}={value}" for key, value in own.items() if bundled.get(key) != value]


def _settings(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            items = value if isinstance(value, (list, tuple)) else [value]
            yield f"{prefix}{key}", ",".join(str(item).lower() if isinstance(item, bool) else str(item) for item in items)


def accuracy_section(figures: dict[str, Any]) -> str:
    """One network: how it was trained, and the table."""
    machine, recipe = figures["machine"], figures["recipe"]
    spiking = next(phase for phase in figures["phases"] if "spiking" in phase)
    minutes = sum(phase["seconds"] for phase in figures["phases"]) / 60
    epochs = sum(phase["epochs"] for phase in figures["phases"])
    changed = departures(recipe_from_dict(recipe))
    how = f"\nwith {', '.join(changed)}" if changed else ""
    return (
        f"## {figures['model']}\n\n"
        f"{figures['data']}, {figures['test_images']:,} test images. Recipe {recipe['name']} ({figures['recipe_hash']}){how};\n"
        f"seed {figures['seed']}, {epochs} epochs, {minutes:.0f} minutes of training.\n"
        f"Measured on {machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, nbsnn {machine['nbsnn']}; "
        f"spikes stepped on {spiking['spiking_images']:,} images, neurons compared on {spiking['fidelity_images']}.\n"
        + "".join(f"{note}\n" for note in figures.get("notes", []))
        + "\n"
        + markdown(COLUMNS, table_rows(figures))
    )


def zoo_section(figures: dict[str, Any]) -> str:
    """The bundled networks."""
    rows = [
        (f"zoo:{row['name']}", f"{row['bytes'] / 1e3:.0f}", str(row["timesteps"]), row["recipe_hash"], str(row["epoch"]),
         f"{row['validation_top1']:.2f}", f"{row['test_top1']:.2f}", f"{row['images_per_second']:.0f}")
        for row in figures["rows"]
    ]  # fmt: skip
    columns = ("network", "kB", "T", "recipe", "epoch", "validation top-1", "test top-1", "images/s")
    return (
        f"## Bundled networks\n\n`python benchmarks/zoo.py`: {figures['data']}, {figures['test_images']:,} test images, in "
        f"integers (engine `counts`); {described(figures['machine'])}.\n\n" + markdown(columns, rows)
    )


def finetune_section(figures: dict[str, Any]) -> str:
    """The fine-tuning methods, side by side."""
    rows = []
    for row in filter(lambda row: row["method"], figures["rows"]):
        chosen = row["settings"]
        method = row["method"] + ", calibrated first" * chosen["calibrate_first"] + ", forced" * chosen["force"]
        if row["method"] == "end-to-end":
            method += f", {'weights too, ' * chosen['weights']}distillation {chosen['distillation']:g}, rate {chosen['lr']:g}"
        elif row["method"] == "layerwise" and not chosen["weights"]:
            method += ", without weights"
        # Whether the calibration was kept that training began from says nothing about the training.
        kept = [change["kept"] for change in row["held_out"]["changes"][int(chosen["calibrate_first"]) :]]
        outcome = "kept" if all(kept) else f"{sum(kept)} of {len(kept)}" if any(kept) else "undone"
        seen = chosen["calibration_images"] if row["method"] == "calibrate" else row["train_images"]
        numbers = (f"{row[key]:.2f}" for key in ("quantized_top1", "spiking_top1_before", "spiking_top1", "gap"))
        rows.append((f"{row['recipe_hash']}, epoch {row['epoch']}", str(row["bits"]), str(row["timesteps"]), method,
                     f"{seen:,}", f"{row['test_images']:,}", *numbers, outcome, f"{row['processor_seconds']:.0f}"))  # fmt: skip
    columns = ("network", "bits", "T", "method", "train images", "test images", "quantized", "before", "after", "gap",
               "changes", "CPU s")  # fmt: skip
    return (
        f"## Fine-tuning for the fixed schedule\n\nResNet-20, signed neurons, {figures['data']}. *network*: hash of its recipe "
        "and which\nepoch of its last phase it is from. *changes*: what was kept of what the method tried, judged on held-out "
        "images;\nafter *calibrated first*, of what followed.\n\n" + markdown(columns, rows)
    )


def ablations_section(figures: dict[str, Any]) -> str:
    """Ablations: the same phase with different settings."""
    rows = [
        (" ".join([row["recipe"], *row["set"]]), "float" if row["bits"] == FLOAT_BITS else str(row["bits"]), _begun(row),
         str(row["epochs"]), str(row["seed"]), row["settings"] or "as it stands",
         *(f"{row[k]:.2f}" for k in ("train_top1", "validation_top1", "last_top1")), row.get("gpu", "CPU"))
        for row in figures["rows"]
    ]  # fmt: skip
    data = ", ".join(dict.fromkeys(row["data"] for row in figures["rows"]))
    columns = ("recipe", "bits", "start", "epochs", "seed", "variant", "train", "validation", "test", "on")
    return (
        f"## Ablations\n\n`python benchmarks/ablations.py`: {data}; one phase trained again and again on the same batches, "
        "with the\nsettings named. Accuracies of the last epoch, top-1 in percent; *train* while training, on cropped and "
        "flipped images.\n\n" + markdown(columns, rows)
    )


def _begun(row: dict[str, Any]) -> str:
    start = row["start"] or "fresh weights"
    taught = f"; taught by {row['teacher']}" if row["teacher"] else ""
    return start + ("" if row["calibrated"] else "; thresholds without images") + taught


def training_section(figures: dict[str, Any]) -> str:
    """Cost of quantization and of the loop in a training step."""
    machine = figures["machine"]
    steps = [
        (row["net"], row["how"], *(f"{1e3 * row[k]:.2f}" for k in ("float_seconds", "quantized_seconds")),
         *(f"{row[k]:.3f}" for k in ("ratio", "ratio_min", "ratio_max")))
        for row in figures["rows"]
    ]  # fmt: skip
    loops = [
        (row["net"], row["how"], row["form"], *(f"{row[k]:.0f}" for k in ("bare_images_per_second", "images_per_second")),
         f"{row['outside_percent']:.1f}", f"{row['plain_images_per_second']:.0f}", f"{row['plain_outside_percent']:.1f}")
        for row in figures["loops"]
    ]  # fmt: skip
    where = machine.get("gpu", "CPU")
    return (
        f"## Training steps, {where}\n\n"
        f"`python benchmarks/training.py{' --device cuda' * ('gpu' in machine)}`, batch {figures['batch']}, {figures['bits']} "
        f"bits, {figures['repeats']} pairs; {described(machine)}.\n\n"
        + markdown(("net", "how", "float ms", "quantized ms", "ratio", "least", "most"), steps)
        + "\nImages a second of a bare step of the model and of the training loop, taken in turns, and of a plain loop over a "
        "`DataLoader`\nof single images, which on CUDA launches kernel by kernel; *outside* is the share of the time beyond "
        "the bare step.\n\n"
        + markdown(("net", "how", "form", "bare step", "loop", "outside %", "plain loop", "plain, outside %"), loops)
    )


def input_section(figures: dict[str, Any]) -> str:
    """Speed of reading photographs."""
    rows = [
        (row["pass"], row["loader"], *(f"{row[k]:.0f}" for k in ("images_per_second", "slowest", "fastest")),
         f"{row['ratio']:.2f}")
        for row in figures["rows"]
    ]  # fmt: skip
    same = figures["parity"]
    return (
        "## Photographs to batches\n\n"
        f"`python benchmarks/input.py TREE --images {figures['images']}`, {figures['images']} JPEG files of ImageNet "
        f"(98 different ones), batches of "
        f"{figures['batch']}; {described(figures['machine'])}, as many\nthreads (DALI) or worker processes (torch).\n\n"
        + markdown(("pass", "loader", "images/s", "slowest", "fastest", "over torch"), rows)
        + f"\nThe {same['images']} validation images of both differ by {same['mean_levels']:.2f} levels of 255 on average, "
        f"{same['largest_levels']:.0f} at most in one pixel;\nthe logits of an AlexNet with random weights by "
        f"{same['largest_logit_difference']:.2g} at most, where the largest is {same['largest_logit']:.2g}.\n"
    )


def exactness_section(figures: dict[str, Any]) -> str:
    """Networks of ImageNet's size under the exact schedules."""
    rows = []
    for row in figures["rows"]:
        simulated = [
            cell
            for schedule in ("settle", "barrier")
            for cell in (f"{row[schedule]['differing']:,}", str(row[schedule]["steps"]), f"{row[schedule]['seconds']:.1f}")
        ]
        integer = (f"{row['integer_differing']:,}", f"{row['counts_seconds']:.2f}", f"{row['settle_spikes_seconds']:.2f}")
        memory = (f"{row['integer_peak_mib']:,}", f"{row['peak_mib']:,}")
        rows.append((row["net"], str(row["bits"]), f"{row['settle']['neurons']:,}", *simulated, *integer, *memory))
    columns = ("net", "bits", "neurons", "settle: off", "steps", "s", "barrier: off", "steps", "s",
               "integer: off", "counts s", "settle s", "MiB, integer", "MiB, in all")  # fmt: skip
    return (
        "## Photographs of 224×224, exact schedules\n\n"
        f"`python benchmarks/exactness.py TREE`: {figures['rows'][0]['images']} photographs of ImageNet, weights random, norms "
        f"and thresholds\ncalibrated on others; {described(figures['machine'])}. Neurons compared in float64; *integer: off*: "
        "counts that differ between\n`counts` and `spikes` under both schedules. Seconds are for one image, memory is the "
        "process's peak.\n\n" + markdown(columns, rows)
    )


def inference_section(figures: dict[str, Any]) -> str:
    """Time of each form, and its dependence on activity."""
    blocks = []
    for row in figures["rows"]:
        lines = [
            (name, f"{1e3 * f['seconds']:.1f}", f"{1e3 * f['fastest']:.1f}", f"{1e3 * f['slowest']:.1f}",
             f"{f['images_per_second']:.0f}", f"{f['ratio']:.2f}")
            for name, f in row["figures"].items()
        ]  # fmt: skip
        active = "; ".join(f"{name} {w['activity_percent']:.1f} %, {w['steps']:.1f} steps" for name, w in row["work"].items())
        title = f"### {row['net']}, T = {row['timesteps']}, batch {row['batch']}"
        about = f"Weights: {row['weights']}.\nNeurons that fire in a step, and steps: {active}."
        blocks.append(f"{title}\n\n{about}\n\n" + markdown(("", "ms", "fastest", "slowest", "images/s", "ratio"), lines))
    nets = dict.fromkeys(row["net"] for row in figures["rows"])
    text = (
        f"## Inference: {', '.join(nets)}\n\n"
        f"`{figures['command']}`,\n{figures['repeats']} repeats in turns (3 at most of quantized, spiking and spikingjelly; "
        f"small batches several times in a row);\n{described(figures['machine'])}, native "
        f"kernels {', '.join(figures['machine']['native'])}.\n*ratio*: time over that of the faster of the eager and the "
        "compiled float net in the same repeat, median.\n\n" + "\n".join(blocks)
    )
    if figures["sweep"]:
        text += (
            f"\n### Cost and activity\n\n{figures['sweep'][0]['net']}, unsigned spikes: milliseconds an image against the "
            "share of neurons that fire in a "
            "step; biases were shifted to get there.\nBy events: the walk over lists of active channels; by planes: what "
            f"larger batches take; dense int8: torch's, of the float net, once.\n\n"
            f"![milliseconds an image against activity]({CHART})\n"
        )
    return text


def described(machine: dict[str, Any]) -> str:
    return f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}"


def efficientnet_section(figures: dict[str, Any]) -> str:
    """A pretrained network of others, quantized without training."""
    rows = [
        (*row["bits"].removeprefix("w").split("a"), f"{row['agreement']:.1f}", f"{row['divergence']:.3f}",
         f"{row['seconds']:.0f}", f"{row['peak_mib']:,}")
        for row in figures["rows"]
    ]  # fmt: skip
    first = figures["rows"][0]
    columns = ("weight bits", "act bits", "same class %", "divergence", "s", "MiB")
    return (
        "## EfficientNet-Lite0 without training\n\n`python benchmarks/efficientnet.py`: the pretrained network of the package "
        'efficientnet_lite_pytorch,\nunmodified, quantized with `method="reconstruct"` on '
        f"{first['calibration']} photographs without labels\n(uniform weights, a scale per output channel; edge layers have "
        f"8 bits). *same class*: agreement with the float network\non {first['test']} other photographs; *divergence*: "
        f"Kullback-Leibler, of its probabilities. {described(figures['machine'])}.\n\n"
        + markdown(columns, rows)
        + _lowered(figures["rows"])
    )


def _lowered(rows: list[dict[str, Any]]) -> str:
    """How far integer networks are from the quantized network in float64."""
    lowered = [row for row in rows if "differing" in row]
    if not lowered:
        return ""
    table = [
        (f"W{row['bits'].removeprefix('w').replace('a', 'A')}", how, f"{differing:,} of {row['neurons']:,}",
         f"{row['same_class'][how]} of {row['lowered']}")
        for row in lowered for how, differing in row["differing"].items()
    ]  # fmt: skip
    exact = all(row["settle"] == row["barrier"] == 0 for row in lowered)
    text = (
        "\nNeurons whose count differs from the quantized network in float64, and images of the same class: of the network in\n"
        "float32, and of integer networks with `membrane_bits` of 32 and 64. One count that differs in an early layer changes\n"
        "thousands in later ones. Counts and spikes of the integer network under `settle` and `barrier` are\n"
        f"{'' if exact else 'not '}equal.\n\n"
    )
    return text + markdown(("network", "arithmetic", "neurons that differ", "same class"), table)


SECTIONS = {
    "accuracy": accuracy_section, "zoo": zoo_section, "finetune": finetune_section, "ablations": ablations_section,
    "training": training_section,
    "input": input_section, "exactness": exactness_section, "efficientnet": efficientnet_section,
    "inference": inference_section,
}  # fmt: skip
