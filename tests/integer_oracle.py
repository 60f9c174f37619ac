"""A plain interpreter of integer networks in NumPy int64, one image at a time: slow, obvious, and sharing no code.

It reads the fields of a program and does with them what the module docstring of `nbsnn.integer.program` says.
"""

from functools import lru_cache

import numpy as np


def numbers(tensor):
    """A tensor as an array of Python-sized integers or doubles."""
    array = tensor.numpy()
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def per_channel(values, shape):
    return values.reshape(-1, *[1] * (len(shape) - 1))


@lru_cache(1024)
def taps(branch):
    """A branch's weight [kh, kw, O, I] in doubles, which multiply many times as fast, and its largest Σ|w|."""
    weight = branch.weight.numpy().astype(np.float64)
    weight = weight.reshape(*weight.shape, *[1] * (4 - weight.ndim))
    return np.ascontiguousarray(weight.transpose(2, 3, 0, 1)), np.abs(weight).reshape(len(weight), -1).sum(1).max()


def convolve(x, branch, shape):
    """acc of a branch for one image: the definition of a convolution, tap by tap."""
    if branch.weight is None:
        return x.reshape(shape)
    weight, load = taps(branch)
    assert load * np.abs(x).max(initial=0) < 2**53  # so that doubles are exact
    if branch.weight.dim() == 2:
        return (weight[0, 0] @ x).astype(np.int64).reshape(shape)
    (sy, sx), (py, px), (dy, dx) = branch.stride, branch.padding, branch.dilation
    kh, kw, rows, inner = weight.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (py, py), (px, px)))
    high = (padded.shape[1] - dy * (kh - 1) - 1) // sy + 1
    wide = (padded.shape[2] - dx * (kw - 1) - 1) // sx + 1
    out = np.zeros((rows, high * wide))
    members = rows // branch.groups
    for group in range(branch.groups):
        chosen = slice(group * members, (group + 1) * members)
        for ky in range(kh):
            for kx in range(kw):
                top, left = ky * dy, kx * dx
                seen = padded[group * inner : (group + 1) * inner,
                              top : top + sy * (high - 1) + 1 : sy, left : left + sx * (wide - 1) + 1 : sx]  # fmt: skip
                out[chosen] += weight[ky, kx, chosen] @ seen.reshape(inner, -1)
    return out.astype(np.int64).reshape(shape)


def structural(node, x):
    """A pooled or flattened value."""
    if type(node).__name__ == "Flatten":
        return x.reshape(-1)
    (kh, kw), (sy, sx), (py, px) = node.kernel, node.stride, node.padding
    padded = np.pad(x, ((0, 0), (py, py), (px, px)))
    out = np.zeros(node.shape, np.int64)
    for y in range(node.shape[1]):
        for left in range(node.shape[2]):
            out[:, y, left] = padded[:, y * sy : y * sy + kh, left * sx : left * sx + kw].sum((1, 2))
    return out


def extreme(node, x):
    """The maxima or minima of windows, place by place."""
    rows, columns = (axis.index.numpy() for axis in (node.map.rows, node.map.columns))
    x, choose = x.reshape(*(*x.shape, 1)[:1], *(1, *x.shape[1:])[-2:]), np.min if node.lowest else np.max
    out = np.zeros((len(x), rows.shape[1], columns.shape[1]), np.int64)
    for y in range(rows.shape[1]):
        for left in range(columns.shape[1]):
            window = x[:, rows[:, y][rows[:, y] >= 0]][:, :, columns[:, left][columns[:, left] >= 0]]
            out[:, y, left] = choose(window, axis=(1, 2))
    return out.reshape(node.shape)


class Oracle:
    """One program and one image, `pixels` [C, H, W] int64."""

    def __init__(self, program, pixels):
        self.program = program
        self.fixed = {"image": np.asarray(pixels, np.int64)}
        for node in program.nodes:
            if type(node).__name__ != "Unit" and node.source in self.fixed:
                self.fixed[node.name] = structural(node, self.fixed[node.source])
        self.received, self.best, self.changes = {}, {}, {}  # of max pools: counts so far, their maxima, changes of these
        self.constant = {unit.name: self.constant_current(unit) for unit in program.nodes if type(unit).__name__ == "Unit"}

    def constant_current(self, unit):
        """Bias and image, in each of the first T steps."""
        total = per_channel(numbers(unit.bias), unit.shape) + np.zeros(unit.shape, np.int64)
        for branch in unit.branches:
            if branch.source in self.fixed:
                product = per_channel(numbers(branch.multiplier), unit.shape) * convolve(
                    self.fixed[branch.source], branch, unit.shape
                )
                total += (product + (1 << (branch.shift - 1))) >> branch.shift
        return total

    def moving_current(self, unit, values):
        """What the spikes (or counts) of other units give."""
        total = np.zeros(unit.shape, np.int64)
        for branch in unit.branches:
            if branch.source not in self.fixed:
                total += per_channel(numbers(branch.multiplier), unit.shape) * convolve(
                    values[branch.source], branch, unit.shape
                )
        return total

    def propagate(self, fire):
        """Every value, given what units do with their moving current; and the head's acc of each branch."""
        values = dict(self.fixed)
        for node in self.program.nodes:
            if type(node).__name__ == "Unit":
                values[node.name] = fire(node, self.moving_current(node, values))
            elif node.name not in values:
                values[node.name] = self.other(node, values[node.source])
        head = self.program.head
        return values, [convolve(values[branch.source], branch, head.shape) for branch in head.branches]

    def other(self, node, x):
        """What a node without neurons makes of its source's spikes (or counts)."""
        if type(node).__name__ != "MaxPool":
            return structural(node, x)
        name, before = node.name, self.best.get(node.name, 0)
        self.received[name] = self.received.get(name, 0) + x
        self.best[name] = extreme(node, self.received[name])
        change = self.best[name] - before
        self.changes[name] = self.changes.get(name, 0) + np.abs(change)
        return change

    def counts(self):
        """(counts, accumulators) of the quantized network."""
        T = self.program.timesteps

        def fire(unit, current):
            total = 2 ** (unit.fraction_bits - 1) + T * self.constant[unit.name] + current
            return np.clip(total // 2**unit.fraction_bits, 0, unit.levels)

        values, accumulators = self.propagate(fire)
        self.fired = {name: values[name] for name in self.constant}
        return self.fired, accumulators

    def step_until(self, neuron, schedule):
        """(counts, accumulators, steps, spikes) of "fixed" and "settle"."""
        T = self.program.timesteps
        membrane = {u: 2 ** (self.unit(u).fraction_bits - 1) + 0 * c for u, c in self.constant.items()}
        count = {u: 0 * c for u, c in self.constant.items()}
        self.fired = {u: 0 * c for u, c in self.constant.items()}
        totals, step, last = None, 0, 0
        while True:
            step += 1

            def fire(unit, current, driven=step <= T):
                name, theta = unit.name, 2**unit.fraction_bits
                v = membrane[name] + current + (self.constant[name] if driven else 0)
                if schedule == "settle":
                    up, down = (v >= theta) & (count[name] < unit.levels), (v < 0) & (count[name] > 0)
                else:
                    up = v >= theta
                    down = (v <= unit.retract) & (count[name] > 0) & (neuron == "signed")
                spike = up.astype(np.int64) - down
                membrane[name] = v - theta * spike
                count[name] = count[name] + spike
                self.fired[name] = self.fired[name] + np.abs(spike)
                return spike

            before = self.spikes()
            _, accumulators = self.propagate(fire)
            moving = [0 if b.source in self.fixed and step > 1 else 1 for b in self.program.head.branches]
            accumulators = [a * m for a, m in zip(accumulators, moving, strict=True)]
            totals = accumulators if totals is None else [a + b for a, b in zip(totals, accumulators, strict=True)]
            silent = self.spikes() == before
            last = last if silent else step
            if step >= T and (schedule == "fixed" or silent):
                return count, totals, max(T, last), self.spikes()

    def spikes(self):
        """Of each unit so far, of either sign."""
        return {name: int(fired.sum()) for name, fired in self.fired.items()}

    def barrier(self):
        """(counts, accumulators, steps, spikes): each unit integrates T steps, then fires as a constant current would."""
        T = self.program.timesteps
        count, trains = {}, [dict(self.fixed) for _ in range(T)]
        for node in self.program.nodes:
            if node.name in self.fixed:
                continue
            if type(node).__name__ != "Unit":
                for values in trains:
                    values[node.name] = self.other(node, values[node.source])
                continue
            membrane = 2 ** (node.fraction_bits - 1) + np.zeros(node.shape, np.int64)
            for values in trains:
                membrane = membrane + self.constant[node.name] + self.moving_current(node, values)
            count[node.name] = np.clip(membrane // 2**node.fraction_bits, 0, node.levels)
            # An integrate-and-fire neuron with threshold 2T and the constant current 2·count, from half a threshold.
            v = np.full(node.shape, T)
            for values in trains:
                v = v + 2 * count[node.name]
                values[node.name] = (v >= 2 * T).astype(np.int64)
                v = v - 2 * T * values[node.name]
        head = self.program.head
        totals = []
        for branch in head.branches:
            parts = [convolve(values[branch.source], branch, head.shape) for values in trains]
            totals.append(parts[0] if branch.source in self.fixed else sum(parts))
        self.fired = count
        return count, totals, self.depth() * T, self.spikes()

    def depth(self):
        """Windows until the head has seen everything: units on the longest path, and one more."""
        depth = {"image": 0}
        for node in self.program.nodes:
            depth[node.name] = max(depth[s] for s in node.sources) + (type(node).__name__ == "Unit")
        return max(depth[s] for s in self.program.head.sources) + 1

    def unit(self, name):
        return next(node for node in self.program.nodes if node.name == name)

    def logits(self, accumulators):
        """float32 logits from the head's accumulators."""
        head = self.program.head
        total = per_channel(numbers(head.bias), head.shape)
        for branch, accumulator in zip(head.branches, accumulators, strict=True):
            total = total + accumulator.astype(np.float64) * per_channel(numbers(branch.multiplier), head.shape)
        return total.astype(np.float32)


def run_oracle(program, pixels, *, engine, neuron=None, schedule=None):
    """(logits, counts, steps, spikes) of one image, as the engines give them for a batch."""
    oracle = Oracle(program, pixels)
    if engine == "counts":
        counts, accumulators = oracle.counts()
        steps, spikes = program.timesteps, {name: int(c.sum()) for name, c in counts.items()}
    elif schedule == "barrier":
        counts, accumulators, steps, spikes = oracle.barrier()
    else:
        counts, accumulators, steps, spikes = oracle.step_until(neuron, schedule)
    return oracle.logits(accumulators), counts, steps, spikes
