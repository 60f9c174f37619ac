"""Builds the native code, two optional extensions: without a C++17 compiler the package installs all the same."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Of the integer networks' engine.
PARTS = ["engine", "ways", "gathering", "tables", "dots", "thresholds", "flight", "crew", "targets", "rates", "logits"]
# Its kernel for each instruction set.
KERNELS = ["kernel_baseline", "kernel_avx2", "kernel_avx512", "kernel_avx512vbmi"]
FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-pthread"]


def extension(name: str, folder: str, files: list[str], *flags: str) -> Extension:
    """An extension of C++ files in a folder."""
    return Extension(
        name,
        sources=[f"{folder}/{file}.cpp" for file in files],
        depends=[str(path) for path in sorted(Path(folder).glob("*.[chi]*"))],
        language="c++",
        extra_compile_args=[*FLAGS, *flags],
        extra_link_args=["-pthread"],
    )


class OptionalBuild(build_ext):
    """A failure is one line, which pip shows with -v; at run time `nbsnn info --system` says that there is no extension."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:  # whatever a compiler or its absence may raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            sys.stderr.write(f"nbsnn: {ext.name} was not built ({reason}); torch will run in its place\n")

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """None by name: the library is loaded with ctypes and is no Python module."""
        return []

    def copy_extensions_to_source(self) -> None:
        every = self.extensions
        self.extensions = [ext for ext in every if Path(self.build_lib, self.get_ext_filename(ext.name)).exists()]
        super().copy_extensions_to_source()
        self.extensions = every


setup(
    ext_modules=[
        extension(
            "nbsnn.integer._native",
            "src/nbsnn/integer/native",
            [*PARTS, *KERNELS],
        ),
        # Quantized numbers are the same bits as torch's: no multiplication and addition is contracted.
        extension("nbsnn.fused._native", "src/nbsnn/fused", ["fused", "targets"], "-ffp-contract=off"),
    ],
    cmdclass={"build_ext": OptionalBuild},
)
