"""Random command lines through `nbsnn.cli.main`."""

import contextlib
import io
import os
import random
import shlex
import traceback
from pathlib import Path
from typing import Any

import typer
from forging import forge
from fuzz import values
from fuzz.corpus import Corpus
from fuzz.files import damage, taken_apart
from fuzz.oracle import LONGEST, Failure

from nbsnn.cli import app, main

VERBS = {
    "info": 6, "eval": 4, "convert": 2, "classify": 3, "lower": 2, "bench": 1, "finetune": 1, "pack": 4, "zoo": 1, "recipes": 2,
    "report": 2, "train": 1, "nonsense": 1,
}  # fmt: skip
ALWAYS = {  # so that a try takes a second; a later option of the same name counts
    "train": ["--recipe", "recipe.toml"],
    "report": ["--recipe", "recipe.toml"],
    "bench": ["--limit", "2", "--repeats", "1"],
    "eval": ["--limit", "5"],
    "convert": ["--limit", "2", "--fidelity-images", "1"],
    "lower": ["--fidelity-images", "1"],
    "finetune": ["--limit", "5", "--limit-train", "40", "--held-out", "10", "--epochs", "1"],
}
ONLY = {  # options whose large values are large amounts of work, or go to the network
    "--repeats": ("0", "1", "-1", "x"),
    "--epochs": ("0", "1", "-1", "x"),
    "--limit": ("0", "1", "7", "-1", "x", str(10**30)),
    "--fidelity-images": ("0", "1", "3", "-1"),
    "--spiking-limit": ("1", "2"),
    "--limit-train": ("0", "1", "40"),
    "--held-out": ("0", "1", "40"),
    "--data": ("digits", "sample", "cifar10", "x"),
    "--pretrained": ("x", "quantized.pth.tar"),
}
MOSTLY = {
    "--recipe": ("recipe.toml", "recipe.toml", "digits/_base", "digits/resnet20:nothing", "photo.png"),
    "name": ("recipe.toml", "digits/resnet20", "digits/_base", "photo.png"),
    "--set": ("phase.2.epochs=1", "data.batch_size=0", "phase.2.lr=nan", "seed=7", "x", "=", "data.root=/dev/null"),
    "--device": ("cpu", "cpu", "meta", "cuda", "mps"),
    "--split": ("test", "validation", "train"),
    "--engine": ("counts", "spikes"),
    "--backend": ("auto", "native", "torch"),
    "--neuron": ("signed", "unsigned"),
    "--schedule": ("fixed", "settle", "barrier"),
    "--method": ("layerwise", "end-to-end", "calibrate"),
    "--root": ("data", "/dev/null", "."),
    "--compile": ("off", "auto"),
    "--precision": ("float32", "bfloat16"),
}
PLACES = ("new.safetensors", "new.pth.tar", "new", "a/b/c.safetensors", ".", "/dev/null", "/dev/full", "x" * 300)
SMALL = ("0", "1", "2", "8", "16", "-1", "0.5", "1e-3", "nan", "inf", str(10**30), "x")
SAME_KIND = {"pack": "packed", "lower": "integer", "convert": "spiking", "finetune": "spiking", "report": "report"}


def random_line(r: random.Random, corpus: Corpus, folder: Path) -> str:
    """A verb with options: an exit code of 0, 2 or 130, one line for an error, and no input changed unless it was asked for."""
    inputs = corpus.linked(folder)
    path = r.choice(sorted(inputs))
    _spoil(r, corpus, path)
    inputs[path] = path.stat().st_ino
    words = random_words(r, [path.name for path in inputs])
    shown = shlex.join(words).encode("ascii", "backslashreplace").decode()
    out, err, code = run(words, folder)
    if code not in (0, 2, 130):
        raise Failure(f"{shown}\nexit code {code}\n{err[-3000:]}")
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    if "Traceback" in out + err or (code == 2 and len(errors) != 1) or any(len(line) > LONGEST for line in errors):
        raise Failure(f"{shown}\nexit code {code}\n{err[-3000:]}")
    if "--overwrite" not in words and "--force" not in words:
        kind = SAME_KIND.get(words[0], "nothing")
        allowed = {path for path in inputs if path.stem == kind and words.count(path.name) == 1}
        changed = [p.name for p, node in inputs.items() if p not in allowed and (not p.exists() or p.stat().st_ino != node)]
        if changed:
            raise Failure(f"{shown}\noverwrites {', '.join(changed)}\n{err[-1000:]}")
    return "refused" if code else "accepted"


def _spoil(r: random.Random, corpus: Corpus, path: Path) -> None:
    """Now and then damage a file, or give it another header; it becomes a file of its own."""
    kind = r.random()
    if kind < 0.1:
        content = damage(r, path.read_bytes(), corpus)
        path.unlink()
        path.write_bytes(content)
    elif kind < 0.4 and path.name.partition(".")[0] not in ("foreign", "text") and path.suffix in (".safetensors", ".tar"):
        header, tensors = taken_apart(path)
        values.edit_(r, header)
        path.unlink()
        path.touch()  # in case that no such file can be written
        with contextlib.suppress(TypeError, ValueError, RuntimeError, RecursionError):
            forge(path, header, tensors)


def run(words: list[str], folder: Path) -> tuple[str, str, Any]:
    """Output, errors and exit code in a working directory; an exception's traceback instead of a code."""
    before = Path.cwd()
    out, err = io.StringIO(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code: Any = main(words)
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        code = traceback.format_exc(limit=-12)
    finally:
        os.chdir(before)
    return out.getvalue(), err.getvalue(), code


def random_words(r: random.Random, names: list[str]) -> list[str]:
    """A verb, mostly the arguments that it wants, and some options."""
    verb = r.choices(list(VERBS), list(VERBS.values()))[0]
    known = typer.main.get_command(app).commands.get(verb)  # type: ignore[attr-defined]
    words, options = [verb], [*ALWAYS.get(verb, [])]
    for parameter in known.params if known else []:
        if parameter.param_type_name == "argument":
            words += [_value(r, parameter.name, names)] if r.random() < 0.95 else []
        elif r.random() < (0.9 if parameter.required else 0.15):
            options.append(r.choice(parameter.opts))
            options += [] if parameter.is_flag else [_value(r, parameter.opts[0], names)]
    if r.random() < 0.1:
        options.insert(r.randrange(len(options) + 1), r.choice([*values.WORDS, "--help", "--", "-", "--out", "--colour"]))
    return [word.replace("\x00", "") if r.random() < 0.9 else word for word in (*words, *options)]


def _value(r: random.Random, name: str, names: list[str]) -> str:
    if name in ONLY:
        return r.choice(ONLY[name])
    if name in ("--out", "--run"):
        return r.choice([*PLACES, *names])
    if name in ("checkpoint", "photographs", "--init") and r.random() < 0.9:
        return r.choice([*names, *names, "zoo:cifar10/resnet20-w2a2", "zoo:x", ".", "none", "/dev/null"])
    if name in MOSTLY and r.random() < 0.85:
        return r.choice(MOSTLY[name])
    return r.choice([*SMALL, *SMALL, *values.WORDS])
