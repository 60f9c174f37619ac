"""Run an integer network from its JSON and binary files, in NumPy alone: a reader to start your own from.

    nbsnn export zoo:cifar10/resnet20-w2a2 --format json --out resnet20.json
    python examples/run_json.py resnet20.json images.npy

images.npy holds images [B, channels, rows, columns]: 8-bit pixels, or integers on the network's grid. A line of outputs is
printed for each. docs/json.md describes the files.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np


class Network:
    """A network in memory; every tensor of the JSON file is an array."""

    def __init__(self, path):
        self.description = json.loads(Path(path).read_text(encoding="utf-8"))
        if (self.description["format"], self.description["version"]) != ("nbsnn network", 1):
            raise ValueError(f"{path}: not a network of version 1")
        data = Path(path).with_name(self.description["data"]["file"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.description["data"]["sha256"]:
            raise ValueError(f"{path}: its binary file is damaged or belongs to another network")
        self.description = with_arrays(self.description, data)

    def run(self, image):
        """Outputs of one image in a list, float32, and the counts of all units by name."""
        net = self.description
        T, table = net["timesteps"], net["image"]["table"]
        if image.dtype == np.uint8:
            image = np.stack([row[channel] for row, channel in zip(table, image, strict=True)])
        values = {"image": np.clip(image.astype(np.int64), net["image"]["low"], net["image"]["high"])}
        constant, counts = {"image"}, {}
        for node in net["nodes"]:
            if node["op"] == "unit":
                values[node["name"]] = counts[node["name"]] = count(node, values, constant, T)
                continue
            values[node["name"]] = place(node, values[node["source"]])
            if node["source"] in constant:
                constant.add(node["name"])
        heads = [head_of(head, values) for head in net["heads"]]
        return [output_of(output, heads) for output in net["outputs"] or ()] or [np.float32(heads[0])], counts


def with_arrays(value, data):
    """The description with an array in place of each pointer to the binary file."""
    if isinstance(value, list):
        return [with_arrays(item, data) for item in value]
    if isinstance(value, dict) and value.keys() == {"type", "shape", "offset"}:
        kind = np.dtype(value["type"]).newbyteorder("<")
        size = int(np.prod(value["shape"]))
        array = np.frombuffer(data, kind, size, value["offset"]).reshape(value["shape"])
        return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
    return {key: with_arrays(item, data) for key, item in value.items()} if isinstance(value, dict) else value


def channels(numbers, shape):
    """[O] or [*shape], to broadcast over [*shape]."""
    return numbers if numbers.ndim == len(shape) else numbers.reshape(-1, *[1] * (len(shape) - 1))


def as_plane(x):
    """[C, rows, columns] of a plane, a line [C, L] or a vector [C]."""
    return x.reshape(len(x), *[1] * (3 - x.ndim), *x.shape[1:])


def count(unit, values, constant, T):
    """clip((2^(F-1) + T * (bias + constant) + sum of gain * acc) >> F, 0, levels)."""
    F, shape = unit["fraction_bits"], unit["shape"]
    fixed = np.broadcast_to(channels(unit["bias"], shape), shape).copy()
    membrane = np.full(shape, 1 << (F - 1), np.int64)
    for branch in unit["branches"]:
        product = accumulate(branch, values).reshape(shape) * channels(branch["gain"], shape)
        if branch["source"] in constant:  # rounded off once, half up; the shift rounds down, also negative numbers
            fixed += (product + (1 << (branch["shift"] - 1))) >> branch["shift"]
        else:
            membrane += product
    return np.clip((membrane + T * fixed) >> F, 0, unit["levels"])


def head_of(head, values):
    """float64, each product and each sum rounded by itself."""
    shape = head["shape"]
    total = np.broadcast_to(channels(head["bias"], shape), shape)
    for branch in head["branches"]:
        total = total + accumulate(branch, values).reshape(shape).astype(np.float64) * channels(branch["gain"], shape)
    return total


def output_of(output, heads):
    """Elements of heads, each times a gain, and a constant."""
    total = None if output["shift"] is None else output["shift"]
    for part in output["parts"]:
        chosen = heads[part["head"]].reshape(-1)[np.maximum(part["index"], 0)]
        chosen = np.where(part["index"] < 0, 0.0, chosen if part["gain"] is None else chosen * part["gain"])
        total = chosen if total is None else total + chosen
    return np.float32(total).reshape(output["shape"])


def accumulate(branch, values):
    """acc of a branch."""
    x = values[branch["source"]]
    if branch["op"] == "identity":
        return x
    if branch["op"] == "product":
        return branch["weight"] @ x
    acc = convolve(as_plane(x), branch)
    return acc if branch["after"] is None else mapped(acc, branch["after"])


def convolve(x, branch):
    """A cross-correlation with zero padding, kernel element by kernel element."""
    weight, (sy, sx), (py, px), (dy, dx) = (branch[key] for key in ("weight", "stride", "padding", "dilation"))
    outputs, inner, high, wide = weight.shape
    x = np.pad(x, ((0, 0), (py, py), (px, px)))
    rows, columns = (x.shape[1] - dy * (high - 1) - 1) // sy + 1, (x.shape[2] - dx * (wide - 1) - 1) // sx + 1
    groups = branch["groups"]
    weight = weight.reshape(groups, outputs // groups, inner, high, wide)
    acc = np.zeros((groups, outputs // groups, rows * columns), np.int64)
    for ky in range(high):
        for kx in range(wide):
            seen = x[:, ky * dy : ky * dy + sy * (rows - 1) + 1 : sy, kx * dx : kx * dx + sx * (columns - 1) + 1 : sx]
            acc += weight[..., ky, kx] @ seen.reshape(groups, inner, -1)
    return acc.reshape(outputs, rows, columns)


def mapped(x, change):
    """Rows, then columns: result[i] = sum over k of weight[k, i] * x[index[k, i]]."""
    for axis, name in ((1, "rows"), (2, "columns")):
        index, weight = change[name]["index"], change[name]["weight"]
        x = sum(
            np.take(x, np.maximum(i, 0), axis) * (w[:, None] if axis == 1 else w) for i, w in zip(index, weight, strict=True)
        )
    return x


def place(node, x):
    """A sum over windows, a map of places, a maximum, a minimum, or a flattened value."""
    if node["op"] == "flatten":
        return x.reshape(-1)
    x = as_plane(x)
    if node["op"] == "map":
        return mapped(x, node).reshape(node["shape"])
    if node["op"] == "sum":
        (kh, kw), (sy, sx), (py, px) = node["kernel"], node["stride"], node["padding"]
        x = np.pad(x, ((0, 0), (py, py), (px, px)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), (1, 2))[:, ::sy, ::sx]
        return windows.sum((3, 4)).reshape(node["shape"])
    choose = np.maximum if node["op"] == "max" else np.minimum
    for axis, name in ((1, "rows"), (2, "columns")):
        index = node[name]["index"]
        index = np.where(index < 0, index.max(0), index)  # nothing: another place of the same window
        x = choose.reduce([np.take(x, i, axis) for i in index])
    return x.reshape(node["shape"])


if __name__ == "__main__":
    network = Network(sys.argv[1])
    for image in np.load(sys.argv[2]):
        outputs, _ = network.run(image)
        sys.stdout.write(" ".join(f"{number:.9g}" for output in outputs for number in output.reshape(-1)) + "\n")
