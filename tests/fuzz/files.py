"""Damaged and forged files of every kind."""

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import torch
from forging import forge
from fuzz import values
from fuzz.corpus import Corpus, Kind
from fuzz.oracle import Failure, refusal, same
from safetensors import safe_open
from torch import Tensor

TYPES = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32,
         torch.float64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2)  # fmt: skip


def damaged(r: random.Random, corpus: Corpus, folder: Path) -> str:
    """Bits and bytes that are not what was written: refused, or nothing that counts was hit."""
    name = r.choice(sorted(corpus.kinds))
    kind = corpus.kinds[name]
    path = folder / name
    content = damage(r, kind.path.read_bytes(), corpus)
    path.write_bytes(content)
    result, said = refusal(lambda: kind.load(path))
    another = any(content == other.path.read_bytes() for other in corpus.kinds.values())
    if said is None and not another and not same(result, kind.result):
        raise Failure(f"{name}, damaged, loads as something else")
    return "refused" if said else "accepted"


def damage(r: random.Random, content: bytes, corpus: Corpus) -> bytes:
    """Flip, cut, overwrite, insert, delete, double or mix."""
    data = bytearray(content)
    for _ in range(r.choice([1, 1, 1, 2, 5])):
        if not data:
            break
        at, size = r.randrange(len(data)), r.choice([1, 1, 2, 8, 64, 1000])
        kind = r.randrange(8)
        if kind < 3:
            data[at] ^= 1 << r.randrange(8)
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at : at + size] = bytes(r.choice([0, 255, r.randrange(256)]) for _ in range(size))[: len(data) - at]
        elif kind == 5:
            data[at:at] = r.randbytes(size)
        elif kind == 6:
            del data[at : at + size]
        else:
            other = corpus.kinds[r.choice(sorted(corpus.kinds))].path.read_bytes()
            data[at:] = other[at:] if r.random() < 0.5 else other[r.randrange(len(other)) :]
    return bytes(data)


def taken_apart(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors, as they lie in a file."""
    if path.suffix == ".tar":
        content = torch.load(path, weights_only=True)
        return json.loads(content["nbsnn"]), content["state_dict"]
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["nbsnn"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def other_header(r: random.Random, corpus: Corpus, folder: Path) -> str:
    """Another header, with a right hash."""
    name = r.choice(sorted(corpus.kinds))
    header, tensors = taken_apart(corpus.kinds[name].path)
    values.edit_(r, header)
    text = values.text_of(r, header)
    whole = text == json.dumps(header)
    return _load(corpus.kinds[name], folder / name, header if whole else text, tensors)


def other_tensors(r: random.Random, corpus: Corpus, folder: Path) -> str:
    """Other tensors, with a right hash."""
    name = r.choice(sorted(corpus.kinds))
    header, tensors = taken_apart(corpus.kinds[name].path)
    for _ in range(r.choice([1, 1, 2])):
        key = r.choice(sorted(tensors))
        _change_(r, tensors, key)
    return _load(corpus.kinds[name], folder / name, header, tensors)


def _load(kind: Kind, path: Path, header: Any, tensors: dict[str, Tensor]) -> str:
    plain = {key: value.clone() if isinstance(value, Tensor) else value for key, value in tensors.items()}
    try:
        forge(path, header, plain)
    except (TypeError, ValueError, RuntimeError, RecursionError, UnicodeError):
        return "impossible"
    _, said = refusal(lambda: kind.load(path))
    return "refused" if said else "accepted"


def _change_(r: random.Random, tensors: dict[str, Tensor], key: str) -> None:
    tensor = tensors[key]
    kind = r.randrange(9)
    if kind == 0:
        tensors[key] = tensor.to(r.choice(TYPES))
    elif kind == 1:
        flat = tensor.flatten()
        turned = tensor.transpose(0, -1) if tensor.dim() else flat
        shapes = [tensor[None], flat, turned, flat[:1], flat[:0], flat[:-1], flat[:1].expand(7)]
        tensors[key] = r.choice(shapes).contiguous()
    elif kind == 2:
        del tensors[key]
    elif kind == 3:
        tensors[r.choice(values.WORDS)] = tensors.pop(key)
    elif kind == 4:
        tensors[r.choice(values.WORDS)] = tensor
    elif kind == 5:
        other = r.choice(sorted(tensors))
        tensors[key], tensors[other] = tensors[other], tensors[key]
    elif tensor.numel():
        numbers = tensor.clone().flatten()
        at = r.randrange(len(numbers)) if r.random() < 0.5 else slice(None)
        if numbers.dtype.is_floating_point:
            numbers[at] = r.choice([0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"), 1e-45, 3.0])
        elif numbers.dtype != torch.bool:
            limits = torch.iinfo(numbers.dtype)
            numbers[at] = r.choice([0, 1, limits.min, limits.max, limits.max // 2, 3])
        tensors[key] = numbers.view(tensor.shape)


def other_layout(r: random.Random, corpus: Corpus, folder: Path) -> str:
    """A safetensors file whose table of tensors says something else."""
    name = r.choice(sorted(name for name in corpus.kinds if name.endswith(".safetensors")))
    content = corpus.kinds[name].path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    values.edit_(r, table)
    text = values.text_of(r, table).encode(errors="replace")
    said = len(text) if r.random() < 0.9 else r.choice([0, 1, len(text) - 1, 2**31, 2**63 - 1, 2**64 - 1])
    path = folder / name
    path.write_bytes(said.to_bytes(8, "little") + text + content[8 + length :])
    result, refused = refusal(lambda: corpus.kinds[name].load(path))
    if refused is None and not same(result, corpus.kinds[name].result):
        raise Failure(f"{name}, with another table of tensors, loads as something else")
    return "refused" if refused else "accepted"


def other_archive(r: random.Random, corpus: Corpus, folder: Path) -> str:
    """A torch file whose archive was packed anew: compressed, with parts exchanged, dropped or doubled."""
    name = r.choice(sorted(name for name in corpus.kinds if name.endswith(".pth.tar")))
    parts: list[tuple[str, bytes]] = []
    with zipfile.ZipFile(corpus.kinds[name].path) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at, other = r.randrange(len(parts)), r.randrange(len(parts))
    kind = r.randrange(5)
    if kind == 0:
        del parts[at]
    elif kind == 1:
        parts[at] = (parts[at][0], parts[other][1])
    elif kind == 2:
        parts[at] = (parts[at][0], damage(r, parts[at][1], corpus))
    elif kind == 3:
        parts[at] = (parts[at][0], bytes(2**27))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", r.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for part, content in parts:
            archive.writestr(part, content)
    path = folder / name
    path.write_bytes(buffer.getvalue())
    result, refused = refusal(lambda: corpus.kinds[name].load(path))
    if refused is None and not same(result, corpus.kinds[name].result):
        raise Failure(f"{name}, in another archive, loads as something else")
    return "refused" if refused else "accepted"
