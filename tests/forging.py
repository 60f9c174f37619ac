"""Files that no writer of the package would write: any header beside any tensors, with a right hash."""

import json
from pathlib import Path

import safetensors.torch
import torch

from nbsnn.tensorfile import content_hash, read_tensors


def forge(path: Path, header: dict | str, tensors: dict) -> Path:
    """Write them unchecked; a header may be JSON text. The hash is made anew where the header has one."""
    if isinstance(header, dict):
        plain = all(isinstance(t, torch.Tensor) and t.layout == torch.strided and not t.is_meta for t in tensors.values())
        if "content_hash" in header and plain:
            rest = json.loads(json.dumps({k: v for k, v in header.items() if k != "content_hash"}))
            header = rest | {"content_hash": content_hash(rest, tensors)}
        header = json.dumps(header)
    if path.name.endswith(".pth.tar"):
        torch.save({"state_dict": tensors, "nbsnn": header}, path)
    else:
        safetensors.torch.save_file(tensors, path, {"nbsnn": header})
    return path


def reforge(path: Path, change) -> Path:
    """Let `change(header, tensors)` edit a file in place; what it returns, if anything, is the new header."""
    header, tensors = read_tensors(path)
    return forge(path, change(header, tensors) or header, tensors)
