"""Independent oracles: the arithmetic of the design in plain NumPy and Python, slow and obvious; no code is shared."""

from fractions import Fraction
from math import floor

import numpy as np

# One term of each set; a magnitude is their sum over the largest sum (Li et al., ICLR 2020, in powers of two).
APOT_SETS = {
    2: [[0, 1]],
    3: [[0, 1, 1 / 2, 1 / 4]],
    4: [[0, 1, 1 / 2, 1 / 8], [0, 1 / 4]],
    5: [[0, 1, 1 / 4, 1 / 16], [0, 1 / 2, 1 / 8, 1 / 32]],
}


def apot_magnitudes(bits):
    """Ascending magnitudes in [0, 1]."""
    sums = [0.0]
    for terms in APOT_SETS[bits]:
        sums = [a + b for a in sums for b in terms]
    return np.array(sorted({total / max(sums) for total in sums}))


def quantize_weight(weight, scale, bits):
    """Every entry of the normalised weight goes to the nearest of all levels, found by looking at each of them."""
    weight = np.asarray(weight, np.float64)
    clipped = np.clip((weight - weight.mean()) / weight.std(ddof=1) / scale, -1, 1)
    magnitudes = apot_magnitudes(bits)
    distance = np.abs(np.abs(clipped)[..., None] - magnitudes)
    return np.sign(clipped) * magnitudes[distance.argmin(-1)] * scale


def quantize_activation(x, threshold, bits):
    """floor(clip(x/θ)·L + ½)·θ/L."""
    levels = 2**bits - 1
    return np.floor(np.clip(np.asarray(x, np.float64) / threshold, 0, 1) * levels + 0.5) * threshold / levels


def quantize_edge(weight, maximum):
    """round(w/m·127)·m/127."""
    return np.round(np.asarray(weight, np.float64) / maximum * 127) * maximum / 127


def integrate_and_fire(current, threshold, *, signed, cap=None):
    """One neuron: a list of currents in, a list of spikes out."""
    membrane, count, spikes = threshold / 2, 0, []
    for x in current:
        membrane += x
        spike = 0
        if membrane >= threshold and (cap is None or count < cap):
            spike = 1
        elif signed and count > 0 and (membrane <= -1e-3 if cap is None else membrane < 0):
            spike = -1
        membrane -= spike * threshold
        count += spike
        spikes.append(spike)
    return spikes


def settle_chain(image, weights, biases, thresholds, cap, rng):
    """Counts of a chain of fully connected layers, one random event at a time until nothing can fire, in exact fractions.

    All of the image and of the biases is there from the start; a spike of layer l adds its height to each neuron of layer
    l + 1 through the weight between them. Averages over T = `cap` steps are left to the caller: this works with sums.
    """
    half = Fraction(1, 2)
    charge = [[half * t + cap * Fraction(float(b)) for b in bias] for bias, t in zip(biases, thresholds, strict=True)]
    for j, row in enumerate(weights[0]):
        charge[0][j] += cap * sum(Fraction(float(w)) * Fraction(float(x)) for w, x in zip(row, image, strict=True))
    count = [[0] * len(bias) for bias in biases]
    while True:
        events = [(i, j, 1) for i, t in enumerate(thresholds) for j, v in enumerate(charge[i]) if v >= t and count[i][j] < cap]
        events += [(i, j, -1) for i, layer in enumerate(charge) for j, v in enumerate(layer) if v < 0 and count[i][j] > 0]
        if not events:
            return count
        i, j, sign = events[rng.integers(len(events))]
        charge[i][j] -= sign * thresholds[i]
        count[i][j] += sign
        if i + 1 < len(weights):
            for k, row in enumerate(weights[i + 1]):
                charge[i + 1][k] += sign * thresholds[i] * Fraction(float(row[j]))


def quantize_chain(image, weights, biases, thresholds, cap):
    """Counts of the same chain as a quantized network: N = clip(floor(z + ½), 0, T), layer by layer, in exact fractions."""
    values, counts = [cap * Fraction(float(x)) for x in image], []
    for rows, bias, threshold in zip(weights, biases, thresholds, strict=True):
        sums = [
            sum(Fraction(float(w)) * v for w, v in zip(row, values, strict=True)) + cap * Fraction(float(b))
            for row, b in zip(rows, bias, strict=True)
        ]
        counts.append([min(max(floor(s / threshold + Fraction(1, 2)), 0), cap) for s in sums])
        values = [n * threshold for n in counts[-1]]
    return counts
