"""The spikes of every neuron in every step, and images as a NIR graph takes them; for comparisons."""

from nbsnn.integer.pixels import to_integers


def step_spikes(network, images, *, neuron, schedule):
    """Unit or max pool → [steps, B, *shape] int8, for images [B, ...]; and the logits [B, classes]."""
    layers, options = [node.name for node in network.program.sending], {"neuron": neuron, "schedule": schedule}
    return network.record(images, layers=layers, **options).spikes, network.run(images, engine="spikes", **options)


def on_grid(network, images):
    """Images rounded as the integer network rounds them, float64."""
    pixels = network.program.pixels
    return to_integers(pixels, images).double() / 2**pixels.fraction_bits
