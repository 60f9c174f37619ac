"""The kernel for AVX-512 on a processor without it: each vector of 64 bytes is two of AVX2, and the kernel's tests run on that.

python tests/fuzz/emulated.py [pytest arguments]

The package is copied, the intrinsics of the kernels for AVX-512, of dot products and of AMX are replaced in the copy by
those of `emulated_*.h`, and all of these instruction sets are said to be there.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
NATIVE = Path("nbsnn", "integer", "native")
OPTIONS = ["-std=c++17", "-O2", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-w"]
KERNELS = {
    "kernel_avx512.cpp": "avx512f,avx512bw,avx512vl,avx512dq,bmi,bmi2,popcnt,prefer-vector-width=512",
    "kernel_avx512vbmi.cpp": "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,bmi,bmi2,popcnt,prefer-vector-width=512",
}
PRODUCTS = re.compile(r"NBSNN_DOTS\((pairs|dots)_(256|512), .*?\)\n", re.DOTALL)
TELLS = re.compile(r"(bool has_\w+\(\) \{).*?;\s\}\n", re.DOTALL)  # a function that tells whether instructions are there
ARM = re.compile(r"(?=#elif defined\(__aarch64__\)\n(?:namespace|constexpr))")


def replace(path: Path, old: str, new: str) -> None:
    """Replace a piece of a file, which must be there."""
    text = path.read_text()
    if old not in text:
        raise SystemExit(f"{path.name} no longer holds {old!r}; adapt emulated.py")
    path.write_text(text.replace(old, new))


def build(source: Path) -> None:
    """Build the extension of a copy of the package with the emulated kernel."""
    native = source / NATIVE
    for header in Path(__file__).parent.glob("emulated_*.h"):
        shutil.copy(header, native)
    for kernel, target in KERNELS.items():
        replace(native / kernel, target, "avx2,fma,bmi,bmi2,popcnt")
        replace(native / kernel, "#define NBSNN_VB 64\n", '#include "emulated_kernel.h"\n#define NBSNN_VB 64\n')
    dots = native / "dots.cpp"
    replace(dots, "#include <immintrin.h>\n", '#include "emulated_dots.h"\n')
    dots.write_text(PRODUCTS.sub("", dots.read_text()))
    replace(dots, "#define NBSNN_AVX2 ", '#include "emulated_kinds.h"\n#define NBSNN_AVX2 ')
    for file, functions in ((dots, 2), (native / "processor.h", 6)):
        intel, *others = ARM.split(file.read_text())
        intel, replaced = TELLS.subn(r"\1 return true; }\n", intel)
        if replaced != functions:
            raise SystemExit(f"{file.name} has {replaced} functions that tell instruction sets; adapt emulated.py")
        file.write_text("".join([intel, *others]))
    for built in native.parent.glob("_native*"):
        subprocess.run(["g++", *OPTIONS, "-o", built, *sorted(native.glob("*.cpp"))], check=True)


def main(arguments: Sequence[str]) -> int:
    """Run the tests of the native backend, or those that pytest's arguments name."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        build(source)
        seen = "from nbsnn.integer.backends import library; assert library.targets()[-1] == 'amx', library.targets()"
        subprocess.run([sys.executable, "-c", seen], cwd=folder, env={"PYTHONPATH": str(source)}, check=True)
        tests = arguments or ["-q", "tests/test_native.py", "tests/test_max_pool_integer.py"]
        return subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=ROOT, env={"PYTHONPATH": str(source)}).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
