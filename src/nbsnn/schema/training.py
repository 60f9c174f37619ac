"""The header of a training state, and the history of a phase."""

from nbsnn.recipe import MOST_EPOCHS
from nbsnn.schema.common import FORMAT, HASH
from nbsnn.schema.kinds import later, list_of, map_of, number, table, text, whole

_PERCENT = number(0, 100)
EPOCH = table({
    "epoch": whole(1, MOST_EPOCHS), "loss": number(), "train_top1": _PERCENT, "top1": _PERCENT, "lr": number(0),
    "seconds": number(0), "images_per_second": number(0),
})  # fmt: skip
HISTORY = list_of(EPOCH, 0, MOST_EPOCHS)
TRAINING_STATE = table({
    "format": FORMAT,
    "fingerprint": text(4096),
    "epoch": whole(0, MOST_EPOCHS),
    "step": whole(0, 2**40),
    "loss_sum": number(),
    "correct": whole(0, 2**50),
    "seen": whole(0, 2**50),
    "best": number(-1, 100),
    "history": HISTORY,
    "conditions": later(map_of(text(200), 32)),  # absent: precision, images and the like were not stored
    "extended": later(list_of(whole(1, MOST_EPOCHS), 0, 1000)),  # absent: the phase was not given more epochs after its end
    "momenta": later(whole(0, 2**16)),  # absent: their number was not stored
    "content_hash": later(HASH),  # absent: as in a checkpoint
})  # fmt: skip
