"""The bundled networks: packed files by the names of the networks they hold, such as "cifar10/resnet20-w2a2"."""

from importlib import resources
from pathlib import Path

from nbsnn.errors import CheckpointError, unknown

PREFIX = "zoo:"
_SUFFIX = ".safetensors"


def list_zoo() -> list[str]:
    """Names of all bundled networks."""
    root = Path(str(resources.files(__name__)))
    return sorted(path.relative_to(root).as_posix().removesuffix(_SUFFIX) for path in root.rglob(f"*{_SUFFIX}"))


def locate(path: str | Path) -> Path:
    """The file of a path, or of a name such as "zoo:cifar10/resnet20-w2a2".

    Raises:
        CheckpointError: no such bundled network; suggests close matches.
    """
    if not str(path).startswith(PREFIX):
        return Path(path)
    name = str(path).removeprefix(PREFIX)
    if name not in list_zoo():
        raise CheckpointError(unknown("bundled network", name, list_zoo()))
    return Path(str(resources.files(__name__))) / f"{name}{_SUFFIX}"
