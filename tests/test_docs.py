"""The documentation is true: its table is recomputed, its code runs, its links lead somewhere."""

import json
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from own_project import make_project

import nbsnn
from nbsnn.cli import app, main
from nbsnn.models.own import own_network
from nbsnn.recipes import load_recipe
from nbsnn.spiking.functional import integrate_and_fire
from nbsnn.zoo import PREFIX, list_zoo

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?:\]\(|<(?:img|a)[^>]*?(?:src|href)=\")([^)\s\"]+)")
_MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|tmp|home|mnt|Users)(?:/|\b)")


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ------------------------------------------------------------------------------------------------------------ the table


def read_table(text: str, first_column: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the first Markdown table whose first column has this name."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if re.match(rf"\|\s*{first_column}\s*\|", line))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows[0], rows[2:]


@pytest.fixture(scope="module")
def worked_table() -> dict[str, list[str]]:
    header, rows = read_table((ROOT / "docs" / "concepts.md").read_text(encoding="utf-8"), "step")
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


T, THRESHOLD = 3, torch.tensor(1.0)
RULES = {
    "unsigned": {"signed": False},
    "signed": {"signed": True},
    "settle": {"signed": True, "cap": T},
}


def recompute(currents: torch.Tensor, rule: str) -> dict[str, list[float]]:
    """V after integration, spike and net count of each step that the rule takes."""
    taken = currents if rule == "settle" else currents[:T]
    spikes = integrate_and_fire(taken, THRESHOLD, **RULES[rule])
    count = spikes.cumsum(0)
    membrane = THRESHOLD / 2 + taken.cumsum(0) - THRESHOLD * (count - spikes)
    return {"V": membrane.tolist(), "s": spikes.tolist(), "N": count.tolist()}


@pytest.mark.parametrize("rule", RULES)
def test_every_entry_of_the_worked_table_is_what_the_neuron_does(worked_table, rule):
    currents = torch.tensor([float(x) for x in worked_table["current"]])
    assert worked_table["step"] == [str(t + 1) for t in range(len(currents))]
    assert not currents[T:].any(), "after T steps there is no current"
    for column, expected in recompute(currents, rule).items():
        cells = worked_table[f"{rule} {column}"]
        assert [float(cell) for cell in cells[: len(expected)]] == expected
        assert set(cells[len(expected) :]) <= {"·"}


def test_worked_table_shows_fixed_schedules_wrong_and_settle_right(worked_table):
    currents = torch.tensor([float(x) for x in worked_table["current"]])
    wanted = min(max(math.floor(float(currents.sum() / THRESHOLD) + 0.5), 0), T)
    final = {rule: recompute(currents, rule)["N"][-1] for rule in RULES}
    assert (final["unsigned"], final["signed"], final["settle"], wanted) == (2, 1, 0, 0)
    assert float(worked_table["settle s"][-1]) == 0, "the last step is silent"


# ---------------------------------------------------------------------------------------------------------- the file map


def mapped_files() -> set[str]:
    """Paths below src/nbsnn that the map in docs/design.md names."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    block = re.search(r"^    src/nbsnn/\n((?:      .*\n)+)", text, re.MULTILINE)
    assert block, "docs/design.md has no file map"
    folder, files = "", set()
    for line in block[1].splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        folder = folder if indent > 6 else ""
        if name.endswith("/"):
            folder = name
        else:
            files.add(folder + name)
    return files


def test_file_map_names_every_module():
    package = ROOT / "src" / "nbsnn"
    files = {p.relative_to(package).as_posix() for p in package.glob("**/*.py")}
    known = mapped_files()
    assert known <= files, "docs/design.md names files that do not exist"
    assert {f for f in files if not f.endswith("__init__.py")} <= known, "add a line to the map in docs/design.md"


# -------------------------------------------------------------------------------------------------- code, links, paths


def python_blocks(path: Path) -> list[tuple[int, str]]:
    """(line, source) of the blocks marked python, without those marked norun."""
    text = path.read_text(encoding="utf-8")
    blocks = []
    for match in _BLOCK.finditer(text):
        info = match[1].split()
        if info[:1] == ["python"] and "norun" not in info:
            blocks.append((text.count("\n", 0, match.start()) + 2, match[2]))
    return blocks


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)], ids=page_id)
def test_code_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__docs__"}
    for line, source in python_blocks(page):
        # Blank lines before it, so that a traceback shows the line of the page.
        exec(compile("\n" * (line - 1) + source, str(page), "exec"), namespace)


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells), "clear the outputs before committing"
    namespace = {"__name__": "__notebook__"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"tour.ipynb, cell {number}", "exec"), namespace)
    assert namespace["accuracy"](namespace["net"]) > 90


def test_every_public_name_is_documented_on_one_page():
    pages = (ROOT / "docs" / "reference").glob("*.md")
    documented = [name for page in pages for name in re.findall(r"^::: nbsnn\.[\w.]*?(\w+)$", page.read_text(), re.MULTILINE)]
    assert sorted(documented) == sorted(set(nbsnn.__all__) - {"__version__"})


def shell_lines(path: Path) -> list[str]:
    """The commands of the blocks marked sh, a line each."""
    blocks = [match[2] for match in _BLOCK.finditer(path.read_text(encoding="utf-8")) if match[1].split()[:1] == ["sh"]]
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def section_of(path: Path, heading: str) -> list[str]:
    """The nbsnn commands of the first sh block under a heading."""
    text = path.read_text(encoding="utf-8").split(f"## {heading}\n")[1]
    block = next(match[2] for match in _BLOCK.finditer(text) if match[1] == "sh")
    return [line for line in block.splitlines() if not line.strip().startswith("#")]


def test_the_section_on_ones_own_network_and_images_runs_line_by_line(tmp_path, monkeypatch, capsys):
    """A network in model.py, its state dict, and a folder of images, as the section supposes."""
    project = make_project(tmp_path)
    (project / "recipe.toml").unlink()
    torch.save(own_network("model:net", folder=project).state_dict(), project / "float.pt")
    monkeypatch.chdir(project)
    lines = section_of(ROOT / "README.md", "Your own network and images")
    for line in lines:
        words = shlex.split(line, comments=True)
        short = ["--set", "phase.all.epochs=1"] if words[1] in ("train", "report") else []
        assert main([*words[1:], *short]) == 0, line
    assert {shlex.split(line)[1] for line in lines} >= {"check", "quantize", "convert", "lower", "report"}
    assert {"recipe.toml", "quantized.safetensors", "integer.safetensors", "report.json"} <= {p.name for p in project.iterdir()}
    figures = json.loads((project / "report.json").read_text())
    assert {row["off"] for phase in figures["phases"][1:] for row in phase["spiking"] if row["schedule"] != "fixed"} == {0}


def verbs() -> dict[str, Any]:
    return typer.main.get_command(app).commands


COMMANDS = [(page, line) for page in PAGES for line in shell_lines(page) if re.search(r"(^|-m )nbsnn ", line)]
COMMANDS += [
    (ROOT / name, line.strip().removeprefix("Example: "))
    for name, verb in verbs().items()
    for line in (verb.help or "").splitlines()
    if re.match(r"\s*(Example: )?(nbsnn|torchrun) ", line)
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page.name}: {line[:60]}" for page, line in COMMANDS])
def test_every_command_line_is_one_that_the_program_takes(page, line):
    words = shlex.split(line, comments=True)
    verb, *arguments = words[words.index("nbsnn") + 1 :]
    given = verbs()[verb].make_context(verb, arguments).params
    recipe = given.get("recipe") or (given.get("name") if verb == "recipes" else None)
    if recipe and recipe not in ("NAME", "pets.toml", "recipe.toml"):
        load_recipe(recipe, given.get("settings", []))
    for value in given.values():
        if str(value).startswith(PREFIX):
            assert str(value).removeprefix(PREFIX) in list_zoo()


def test_help_and_readme_promise_the_zoo_to_the_verbs_that_take_it():
    """A packed network has nothing to pack, and the other verbs take no checkpoint."""
    promised = {
        name for name, verb in verbs().items() if any("zoo:NAME" in (getattr(p, "help", "") or "") for p in verb.params)
    }
    assert promised == {
        "report",
        "eval",
        "convert",
        "compare",
        "lower",
        "export",
        "bench",
        "energy",
        "finetune",
        "classify",
        "info",
    }
    told = verbs()["zoo"].help.replace(" and", ",").split(" take ")[0]
    assert promised == set(re.findall(r"\w+", told.split(".")[1]))
    assert "bundled networks are packed already" in " ".join(p.help or "" for p in verbs()["pack"].params)


def test_every_file_that_a_page_names_is_there():
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            for name in re.findall(r"`((?:src|docs|tests|benchmarks|examples|reproduce)/[\w./-]*\w/?)`", line):
                assert (ROOT / name).exists() or name.startswith("reproduce/cifar10/"), f"{page_id(page)}: {name}"


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    text = _BLOCK.sub("", path.read_text(encoding="utf-8"))
    return {slug(heading) for heading in re.findall(r"^#{1,6} +(.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_resolve(page):
    text = re.sub(r"`[^`\n]*`", "", _BLOCK.sub("", page.read_text(encoding="utf-8")))
    for link in _LINK.findall(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page_id(page)}: {link} leads nowhere"
        assert target.is_relative_to(ROOT), f"{page_id(page)}: {link} leads out of the repository"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page_id(page)}: {link} names no heading"


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=page_id)
def test_no_path_of_one_machine(page):
    found = [line for line in page.read_text(encoding="utf-8").splitlines() if _MACHINE_PATH.search(line)]
    assert found == []


# ------------------------------------------------------------------------------------------------------------- examples


@pytest.mark.slow
def test_own_network_runs_and_settles_exactly(tmp_path):
    pytest.importorskip("sklearn")
    command = [sys.executable, str(ROOT / "examples" / "own_network.py"), "--epochs", "1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    fixed, settle = result.stdout.splitlines()
    assert fixed.startswith("fixed: ")
    assert fixed.endswith(" 3.0 steps on average")
    assert settle.startswith("settle: 0.000 % of counts differ")
