"""Download a file and verify its checksum."""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nbsnn.errors import DataError

DownloadProgress = Callable[[int, int], None]  # bytes so far, bytes in total (0: unknown)


def fetch(url: str, path: Path, *, md5: str, progress: DownloadProgress | None = None) -> None:
    """Download a file under a temporary name, verify its MD5 sum, and rename it.

    Raises:
        DataError: the network or the disk failed, or the checksum differs; the temporary file is removed.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as response, part.open("wb") as file:
            total, done = int(response.headers.get("Content-Length") or 0), 0
            while block := response.read(1 << 18):
                file.write(block)
                digest.update(block)
                done += len(block)
                if progress:
                    progress(done, total)
        if digest.hexdigest() != md5:
            raise DataError(f"{url}: MD5 sum {digest.hexdigest()} instead of {md5}; try again, or fetch it by hand")
        os.replace(part, path)
    except (urllib.error.URLError, OSError, TimeoutError) as error:
        raise DataError(
            f"{url}: cannot be fetched ({getattr(error, 'reason', error)}); put the archive at {path} by hand"
        ) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
