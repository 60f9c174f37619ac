"""The levels of the design: a module imports from below, never from above; importing the package has no side effects."""

import ast
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

import nbsnn

ROOT = Path(nbsnn.__file__).parent
LEVELS = [
    ["errors", "extension", "gradients", "hooks", "pooling", "progress", "shapes"],
    ["fused"],
    [
        "aliases",
        "naming",
        "onnx_package",
        "settings",
        "threads",
        "zoo",
        "finite",
        "precision",
        "files",
        "torchfile",
        "statedict",
        "sums",
    ],
    ["arguments", "quant.counted", "quant.levels", "quant.functional", "quant.formats"],
    ["recipe", "surgery", "wrappers", "tracing", "inputs", "distributed", "spiking.functional"],
    ["schema", "norms", "device", "structure", "quant.flow", "quant.operations"],
    ["tensorfile", "prepare"],
    ["outputs"],
    ["recipes", "models", "quant", "data"],
    ["spiking"],
    ["integer"],
    ["checkpoint", "dry_run", "energy", "evaluation", "interop"],
    ["training", "importers", "export", "summary", "project"],
    ["pipeline"],
    ["figures", "report"],
    ["__init__"],
    ["console"],
    ["training_console"],
    ["training_dashboard"],
    ["cli"],
    ["__main__"],
]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


@lru_cache(None)
def syntax_of(path):
    """A file as a syntax tree."""
    return ast.parse(path.read_text())


def level_of(module):
    """The level of "quant.layers"; the longest name in the table that fits."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        for level, names in enumerate(LEVELS):
            if ".".join(parts[:length]) in names:
                return level
    raise AssertionError(f"nbsnn.{module} has no level; add it to the table")


def imports_of(path):
    """Modules of the package that a file imports, wherever in it, such as "quant.layers"."""
    for node in ast.walk(syntax_of(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "nbsnn":
                inner = name.partition(".")[2]
                while inner and inner not in MODULES:
                    inner = inner.rpartition(".")[0]
                yield inner or "__init__"


def test_the_design_shows_these_levels():
    design = Path(__file__).parents[1] / "docs" / "design.md"
    block = re.search(r"^    errors, .*\n(      → .*\n)+", design.read_text(encoding="utf-8"), re.MULTILINE)
    assert block, "docs/design.md has no table of import levels"
    shown = [line.strip().removeprefix("→ ").split(", ") for line in block[0].splitlines()]
    assert [set(level) for level in shown] == [set(level) for level in LEVELS]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_level_or_below(module):
    own = level_of(module)
    for name in imports_of(MODULES[module]):
        assert level_of(name) <= own, f"nbsnn.{module} imports nbsnn.{name} from above"
        same_package = name.partition(".")[0] == module.partition(".")[0]
        assert level_of(name) < own or same_package, f"nbsnn.{module} imports nbsnn.{name} from beside it"


def test_models_know_nothing_of_bits_or_spikes():
    for module, path in MODULES.items():
        if module.startswith("models"):
            assert not any(name.startswith(("quant", "spiking", "integer")) for name in imports_of(path)), module


# The same thing by the same name: what a file of each kind defines, and what adds to a table.
SHARED_NAMES = {
    "DATA_SET", "EXPORTER", "MEAN", "STD", "bytes_per_image", "logger", "photographs", "register", "run_counts", "run_spikes",
}  # fmt: skip


def test_a_public_name_means_one_thing():
    """Verbs are named as what they call; the classes, functions and constants of all other files differ in name."""
    homes = {}
    for module, path in MODULES.items():
        for node in syntax_of(path).body if not module.startswith("cli") else ():
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            else:
                continue
            for name in names:
                if not name.startswith("_") and name not in SHARED_NAMES:
                    homes.setdefault(name, set()).add(module)
    assert not {name: modules for name, modules in homes.items() if len(modules) > 1}


def test_only_the_command_line_prints():
    for module, path in MODULES.items():
        calls = [n.func.id for n in ast.walk(syntax_of(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert "print" not in calls or module.startswith(("cli", "console")), module


@pytest.mark.parametrize(
    ("package", "home"),
    {
        "sklearn": "data.sets.digits",
        "PIL": "data.decode",
        "nvidia": "data.dali",
        "matplotlib": "report.drawing",
        "jinja2": "report.page",
        "torchvision": "importers.torchvision",
        "nir": "interop.nirfile",
        "h5py": "interop.nirfile",
        "spikingjelly": "interop.spikingjelly",
        "nirtorch": "interop.nirtorch",
        "neurobench": "evaluation.neurobench",
        "typer": "cli",
        "rich": "console",
    }.items(),
)
def test_an_optional_package_is_imported_in_one_place(package, home):
    users = {module for module, path in MODULES.items() if package in packages_of(path)}
    assert users, f"{package} is not used; take it out of pyproject.toml and of this test"
    assert all(f"{user}.".startswith(f"{home}.") for user in users), users


def packages_of(path):
    """Top-level packages that a file imports, wherever in it."""
    for node in ast.walk(syntax_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_the_library_names_no_options_of_a_command_line():
    """Messages name arguments, which `nbsnn.console.flags` puts into the words of a command; docstrings may say more."""
    for module, path in MODULES.items():
        if module.startswith(("cli", "console")):
            continue
        tree = syntax_of(path)
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [
            n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in prose
        ]
        assert not [text for text in texts if re.search(r"(?<![\w-])--[a-z]", text)], module


def test_importing_the_package_has_no_side_effects():
    code = (
        "import sys, threading; import nbsnn; import torch\n"
        "heavy = [m for m in ('sklearn', 'tensorboard', 'torch.utils.tensorboard', 'typer') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
        "assert not torch.cuda.is_initialized() and threading.active_count() == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "--no-such-option"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
