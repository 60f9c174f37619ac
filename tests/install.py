"""Install built distributions into empty environments, and run the demo from there.

    python -m build                       # dist/nbsnn-X.Y.Z.tar.gz, dist/nbsnn-X.Y.Z-....whl
    python tests/install.py dist/*        # some minutes: torch is installed for each

Options after -- go to pip, such as --constraint constraints.txt.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

COMMANDS = (
    ["info", "--system"],
    ["zoo"],
    ["eval", "zoo:cifar10/resnet20-w2a2", "--data", "sample", "--limit", "50"],
    ["demo"],
)


def try_out(distribution: Path, options: list[str]) -> None:
    """Install one file with the extras of the demo, and run the commands in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        binaries = Path(folder) / ("Scripts" if sys.platform == "win32" else "bin")
        requirement = f"{distribution.resolve()}[digits,images]"
        subprocess.run([binaries / "python", "-m", "pip", "install", "--quiet", *options, requirement], check=True)
        work = Path(folder) / "empty"
        work.mkdir()
        for command in COMMANDS:
            print(f"{distribution.name}: nbsnn {' '.join(command)}", flush=True)  # noqa: T201
            subprocess.run([binaries / "nbsnn", *command], check=True, cwd=work)


def main() -> None:
    """Try out every file that is named."""
    words = sys.argv[1:]
    files, options = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    if not files:
        sys.exit(__doc__)
    for name in files:
        try_out(Path(name), options)


if __name__ == "__main__":
    main()
