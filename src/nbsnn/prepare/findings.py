"""What stands between a network and its quantized form, and what happens to it."""

from dataclasses import asdict, dataclass

STATUSES = ("handled", "changed", "approximated", "refused")


@dataclass(frozen=True)
class Finding:
    """One place in a network.

    Attributes:
        layer: name of the module, or of the module whose code makes the call.
        place: "file:line" of the call, if it is in code outside torch.
        what: what stands there.
        status: "handled" (needs no change), "changed" (rewritten, with the same function), "approximated" (rewritten with the
            same function, and a value that was not quantized becomes quantized), or "refused".
        remedy: what can be done about it; empty if nothing need be.
    """

    layer: str
    place: str | None
    what: str
    status: str
    remedy: str = ""

    def __str__(self) -> str:
        where = f"{self.layer or 'the network'}{f' ({self.place})' if self.place else ''}"
        return f"{where}: {self.what}{f'; {self.remedy}' if self.remedy else ''}"

    def to_dict(self) -> dict[str, str | None]:
        """As plain values, for JSON."""
        return asdict(self)
