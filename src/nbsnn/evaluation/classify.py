"""Classify photographs with an integer network."""

from dataclasses import dataclass

from nbsnn.data.images import LabelledImages, require_set
from nbsnn.errors import LoweringError
from nbsnn.finite import check_logits
from nbsnn.integer.network import IntegerNetwork


@dataclass(frozen=True)
class Guess:
    """A predicted class: its name, its logit, and its softmax probability in percent."""

    name: str
    logit: float
    share: float


def classify(network: IntegerNetwork, photographs: LabelledImages, *, best: int = 5) -> list[list[Guess]]:
    """The most likely classes of each photograph, in descending order, computed in integers from the 8-bit pixels on.

    Args:
        network: lowered with mean and std, so that it takes 8-bit pixels.
        photographs: 8-bit images in the network's size.
        best: number of classes per photograph.
    Raises:
        LoweringError: the network does not take pixels of this size, or its logits are not finite.
    """
    require_set(photographs, "photographs")
    logits = network.run(photographs.pixels(), engine="counts").double()
    check_logits(logits, LoweringError)
    shares = 100 * logits.softmax(1)
    names = [*photographs.classes, *(f"class {label}" for label in range(len(photographs.classes), logits.shape[1]))]
    order = logits.argsort(1, descending=True)[:, :best]
    return [
        [Guess(names[c], float(logits[image, c]), float(shares[image, c])) for c in classes.tolist()]
        for image, classes in enumerate(order)
    ]
