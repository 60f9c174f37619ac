"""Networks written as C, compiled together, and run."""

import shutil
import subprocess
from math import prod

import numpy as np
import pytest
import torch

from nbsnn.export.c import export_c
from nbsnn.integer.pixels import to_integers

STRICT = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror")
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")

_PROGRAM = """#include <stdio.h>
#include <stdlib.h>
{includes}
#define RUN(name, NAME) do {{ \\
    static int32_t image[NAME##_PIXELS]; \\
    static float result[NAME##_OUTPUTS]; \\
    while (fread(image, sizeof image, 1, stdin) == 1) {{ \\
        name##_run_integers(image, result); \\
        if (fwrite(result, sizeof result, 1, stdout) != 1) return 1; \\
    }} \\
}} while (0)
int main(int argc, char **argv)
{{
    switch (argc > 1 ? atoi(argv[1]) : -1) {{
{cases}
    default: return 2;
    }}
    return 0;
}}
"""


def build(networks, folder, *options):
    """An executable of all networks, the n-th of which runs with the argument n."""
    names = [f"net{index}" for index in range(len(networks))]
    for name, network in zip(names, networks, strict=True):
        export_c(folder / f"{name}.h", network)
    includes = "\n".join(f'#include "{name}.h"' for name in names)
    cases = "\n".join(f"    case {index}: RUN({name}, {name.upper()}); break;" for index, name in enumerate(names))
    (folder / "all.c").write_text(_PROGRAM.format(includes=includes, cases=cases))
    subprocess.run(["gcc", *STRICT, *options, "-o", folder / "all", folder / "all.c"], check=True)
    return folder / "all"


def outputs_of(executable, index, network, images):
    """[B, outputs] float32 of the n-th network of an executable."""
    pixels = to_integers(network.program.pixels, images)
    done = subprocess.run([executable, str(index)], input=pixels.numpy().tobytes(), capture_output=True, check=True)
    return torch.from_numpy(np.frombuffer(done.stdout, np.float32).reshape(len(images), -1).copy())


def flat(result):
    """Outputs of `IntegerNetwork.run` as they follow each other in C, [B, outputs]."""
    if isinstance(result, torch.Tensor):
        return result.reshape(len(result), prod(result.shape[1:]))
    parts = result.values() if isinstance(result, dict) else result
    return torch.cat([flat(part) for part in parts if part is not None], 1)
