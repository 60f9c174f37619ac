"""Observers of a training run that act on it."""

from nbsnn.training.observer import Observer


class StopAfter(Observer):
    """Asks to stop after so many steps, once."""

    def __init__(self, steps):
        self.left = steps

    def should_stop(self):
        self.left -= 1
        return self.left == 0
