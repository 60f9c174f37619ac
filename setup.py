"""Builds the native backend, an optional extension: without a C++17 compiler the package installs all the same."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = "src/nbsnn/integer/native"


class OptionalBuild(build_ext):
    """A failure is one line, which pip shows with -v; at run time `nbsnn info --system` says that there is no extension."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:  # whatever a compiler or its absence may raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            sys.stderr.write(f"nbsnn: the native backend was not built ({reason}); the torch backend will run in its place\n")

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
        Extension(
            "nbsnn.integer._native",
            sources=[f"{SOURCES}/{name}.cpp" for name in ("engine", "ways", "crew", "targets")],
            depends=[str(path) for path in sorted(Path(SOURCES).iterdir())],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-pthread"],
            extra_link_args=["-pthread"],
        )
    ],
    cmdclass={"build_ext": OptionalBuild},
)
