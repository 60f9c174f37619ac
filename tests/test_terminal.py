"""What a person sees in a terminal of any width, through a pipe, or on a stream of another encoding: everything, plainly."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nbsnn import console
from nbsnn.cli import main
from nbsnn.console.flags import Flag, in_flags
from nbsnn.console.layout import show_table
from nbsnn.console.streams import spell
from nbsnn.errors import ConfigError
from nbsnn.evaluation.comparison import compare
from nbsnn.figures import COLUMNS as FIGURE_COLUMNS
from nbsnn.training.execution import Execution
from nbsnn.training_console import TrainingConsole

NET = "zoo:cifar10/resnet20-w2a2"
VERBS = [
    "demo", "init", "check", "train", "report", "quantize", "import", "eval", "convert", "compare", "finetune", "classify",
    "lower", "export", "bench", "energy", "info", "pack", "zoo", "recipes",
]  # fmt: skip


def printed(capsys, *words):
    capsys.readouterr()
    assert main(list(words)) == 0
    return capsys.readouterr().out


def cells(text):
    """All words of a text, wherever they stand."""
    return set(text.split())


# ------------------------------------------------------------------------------------------------------ case 33: tables


@pytest.mark.parametrize("width", [1, 20, 40, 60, 80, 100, 300])
def test_no_word_of_a_table_is_lost_at_any_width(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    columns = ("layer, neuron", "T", "top-1 % of all", "checkpoint")
    rows = [("stage1.0.first.act unsigned", "3", "86.12", "runs/r20/2bit/best.safetensors"), ("", "7", "1.5 / 2", "a b")]
    show_table("A title of some words", columns, rows)
    text = capsys.readouterr().out
    assert cells(" ".join(("A title of some words", *columns, *rows[0], *rows[1]))) <= cells(text)
    if width >= 60:  # the longest word has 30 columns
        assert max(map(len, text.splitlines())) <= width


def test_what_fits_is_one_line_for_a_row_with_numbers_to_the_right(capsys):
    show_table("t", ("name", "top-1 %"), [("a", "9.5"), ("bc", "10.25")])
    assert capsys.readouterr().out.splitlines()[1:5] == ["name  top-1 %", "────  ───────", "a         9.5", "bc      10.25"]


def test_headings_wrap_before_cells_do(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    show_table("t", ("a", "changes kept so far"), [("some words", "1 of 12")])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == ["a            changes", "             kept so", "                 far"]
    assert lines[5] == "some words   1 of 12"


def test_a_list_repeats_the_cells_that_stand_for_those_above(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "10")
    show_table("t", ("bits", "neuron"), [("4", "unsigned barrier"), ("", "signed settle")])
    assert capsys.readouterr().out.count("bits    4\n") == 2


@pytest.fixture(scope="module")
def comparison():
    """One comparison of a network, of which others are made."""
    import torch

    import nbsnn
    from nbsnn.data import load_data

    net = nbsnn.build_model("cifar10/resnet20", in_channels=1, image_size=8).eval()
    quantized = nbsnn.quantize(net, nbsnn.QuantSpec(2, 2), images=torch.rand(8, 1, 8, 8)).eval()
    images = load_data("digits", validation=180).test.some(4)
    return next(iter(compare(quantized, images, pairs=[("signed", "fixed")], fidelity_images=2)))


@pytest.mark.parametrize("width", [40, 60, 80, None])
def test_comparisons_keep_their_columns_digits_and_names(width, comparison, monkeypatch, capsys):
    """Case 33: at 80 columns the table of `convert` and `demo` has every column, in lines of 80 at most."""
    monkeypatch.setenv("COLUMNS", str(width) if width else "")
    rows = [
        replace(comparison, bits=4, timesteps=15, neuron=n, schedule=s, spiking_top1=86.12, steps=117.25, max_steps=1201)
        for n, s in (("unsigned", "barrier"), ("signed", "settle"))
    ]
    console.show_table("title", console.COMPARISON_COLUMNS, console.comparison_rows(rows, 87.5))
    text = capsys.readouterr().out
    assert cells(" ".join(console.COMPARISON_COLUMNS)) <= cells(text)
    assert {"unsigned", "barrier", "settle", "15", "86.12", "87.50", "1201"} <= cells(text)
    assert max(map(len, text.splitlines())) <= (width or 1000)
    if width == 80 or width is None:
        assert "neuron, schedule" in text.replace("neuron,   ", "neuron, schedule")  # wide enough for a table
        assert len(text.splitlines()) <= 8


@pytest.mark.parametrize("width", [40, 80, None])
def test_reports_keep_their_columns_digits_and_names(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width) if width else "")
    row = {"neuron": "unsigned", "schedule": "barrier", "top1": 86.11, "off": 0.123, "steps": 140.0, "max_steps": 1234}
    phase = {"bits": 3, "epochs": 300, "last_top1": 86.71, "best_top1": 86.92, "spiking_images": 12, "counts_top1": 86.5,
             "spiking_counts_top1": 85.25, "timesteps": 7,
             "spiking": [row, row | {"neuron": "signed", "schedule": "settle"}]}  # fmt: skip
    figures = {"model": "cifar10/resnet20", "data": "digits", "test_images": 20, "notes": ["A note."], "phases": [phase]}
    console.show_figures(figures)
    text = capsys.readouterr().out
    assert cells(" ".join(FIGURE_COLUMNS)) <= cells(text)
    assert {"(85.25)", "86.71", "86.92", "0.123", "barrier", "settle", "1234", "7", "note."} <= cells(text)
    assert max(map(len, text.splitlines())) <= (width or 1000)


@pytest.mark.parametrize("words", [("zoo",), ("recipes",), ("info", NET), ("info", "--system")])
def test_listings_say_the_same_at_every_width_and_through_a_pipe(words, monkeypatch, capsys):
    """Case 33: nothing is cut at 80 columns, nor at 40, nor through a pipe, where each row is one line."""
    texts = {}
    for width in ("40", "60", "80", ""):
        monkeypatch.setenv("COLUMNS", width)
        texts[width] = printed(capsys, *words)
    for text in texts.values():
        assert {word for word in cells(texts[""]) if "─" not in word} <= cells(text)
    assert "…" not in "".join(texts.values())
    if words == ("zoo",):
        assert all(line.split()[1].isdigit() for line in texts[""].splitlines() if line.startswith("zoo:"))


def test_a_width_that_is_no_number_is_ignored(monkeypatch, capsys):
    for width in ("²", "-3", "0", "x", "9" * 50):
        monkeypatch.setenv("COLUMNS", width)
        assert "zoo:cifar10/alexnet-w2a2" in printed(capsys, "zoo")


def test_brackets_and_control_characters_of_names_are_shown_as_they_are(capsys):
    show_table("[bold]t[/]", ("name",), [("[red]a[/red]",), ("b\x1b[31mc",)])
    text = capsys.readouterr().out
    assert "[bold]t[/]" in text
    assert "[red]a[/red]" in text
    assert "b\\x1b[31mc" in text
    assert main(["info", "[/bold].safetensors"]) == 2
    assert "error: [/bold].safetensors: no such checkpoint file" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ case 24: streams


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_encoding_gets_plain_output(encoding, monkeypatch):
    """Case 24: an ASCII stream gets ASCII, and no question marks."""
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding=encoding))
    for words in (["recipes"], ["info", NET], ["train", "--help"], []):
        assert main(words) == 0
    sys.stdout.flush()
    text = stream.getvalue().decode(encoding)
    assert "?" not in text
    assert ("32→4→3→2" if encoding == "utf-8" else "32->4->3->2") in text
    assert ("16x16x3x3" if encoding == "ascii" else "16×16×3×3") in text


def test_json_stays_json_on_an_ascii_stream(monkeypatch):
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding="ascii"))
    console.show_json({"a": "→é", "b": float("nan"), "c": [float("inf"), 1.5]})
    sys.stdout.flush()
    assert json.loads(stream.getvalue()) == {"a": "→é", "b": None, "c": [None, 1.5]}


def test_what_no_encoding_has_is_spelled():
    assert spell("θ → 2² \udcff é", "ascii") == "theta -> 2^2 \\udcff \\xe9"
    assert spell("é×", "latin-1") == "é×"
    assert spell("a\udc80", "utf-8") == "a\\udc80"


@pytest.mark.parametrize("words", [["recipes"], ["zoo", "--json"], [], ["train", "--help"], ["--version"]])
def test_a_stream_that_takes_nothing_is_one_line(words, monkeypatch, capsys):
    """Case 24: /dev/full and a closed standard output end in one line and code 2, a reader that has left in silence."""
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(words) == 2
    assert capsys.readouterr().err == "error: cannot write to standard output: No space left on device\n"
    monkeypatch.setattr(sys, "stdout", None)
    assert main(words) == 2
    assert capsys.readouterr().err == "error: standard output is closed; redirect it to a file, or to /dev/null\n"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(words) == 0
    assert capsys.readouterr().err == ""


def test_remarks_that_nobody_can_read_do_not_end_a_command(monkeypatch, capsys):
    for stream in (None, Path("/dev/full").open("w")):  # noqa: SIM115  (closed below)
        monkeypatch.setattr(sys, "stderr", stream)
        assert console.exit_code(lambda: console.note("lost")) == 0
        assert main(["zoo"]) == 0
        assert main(["no such verb"]) == 2
        if stream:
            stream.close()
    assert "zoo:cifar10/resnet20-w2a2" in capsys.readouterr().out


@pytest.mark.slow
def test_streams_of_a_real_process(tmp_path):
    """Case 24 as a shell does it, since descriptors and the end of the interpreter count too; a process takes seconds."""
    command = f"{sys.executable} -m nbsnn"
    script = f"{command} recipes >&- ; echo $?; LC_ALL=C PYTHONUTF8=0 {command} recipes >/dev/full; echo $?"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.split() == ["2", "2"]
    assert done.stderr.splitlines() == [
        "error: standard output is closed; redirect it to a file, or to /dev/null",
        "error: cannot write to standard output: No space left on device",
    ]


def test_an_error_of_the_system_is_one_line(capsys):
    def fails():
        raise PermissionError(13, "Permission denied", "/some/file")

    assert console.exit_code(fails) == 2
    assert capsys.readouterr().err == "error: Permission denied: /some/file; choose another folder\n"

    def eats():
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried ...")

    assert console.exit_code(eats) == 2
    assert "not enough memory" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="a fault"):
        console.exit_code(lambda: (_ for _ in ()).throw(RuntimeError("a fault of ours")))


# ------------------------------------------------------------------------------------------------------------- words


def test_arguments_of_the_library_become_options():
    flags = {"overwrite": Flag("--overwrite"), "weights": Flag("--weights", "--no-weights"), "device": Flag("--device"),
             "phase.N.lr": Flag("--lr"), "root": Flag("--root")}  # fmt: skip
    for message, expected in {
        "train anew (overwrite=True)": "train anew (--overwrite)",
        "again (overwrite=False) to resume": "again (without --overwrite) to resume",
        "leave them (weights=False)": "leave them (--no-weights)",
        "use device='cpu', or device=\"cuda\"": "use --device cpu, or --device cuda",
        "lower phase.4.lr=0.1, or set optim.clip_norm=1": "lower --lr 0.1, or set optim.clip_norm=1",
        "data.root=x: seed=3": "data.root=x: seed=3",
        "name it (root=FOLDER)": "name it (--root FOLDER)",
        "root=: must be text": "--root: must be text",
    }.items():
        assert in_flags(message, flags) == expected

    def fails():
        raise ConfigError("use overwrite=True")

    assert console.exit_code(fails, flags=flags) == 2


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples_one_a_line(verb, capsys):
    lines = printed(capsys, verb, "--help").splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip() in ("Example:", "Examples:"))
    examples = [line.strip() for line in lines[start + 1 : lines.index("", start)]]
    assert examples
    for example in examples:
        assert len(example) <= 76
        assert f"nbsnn {verb}" in example or (verb == "zoo" and "zoo:" in example)
    assert all(len(line) <= 80 for line in lines)
    assert "\b" not in "".join(lines)


def test_no_verb_is_help_and_version_is_one_line(capsys):
    """Case 24's kin: `nbsnn` alone helps, and is no error."""
    text = printed(capsys)
    assert [line.split()[0] for line in text[text.index("Verbs:") :].splitlines()[1:] if line[2:3].isalpha()] == VERBS
    assert "..." not in text.replace("VERB ...", "")
    assert printed(capsys, "--help") == text
    assert printed(capsys, "--version").split()[0] == "nbsnn"
    assert len(printed(capsys, "--version").splitlines()) == 1


def test_a_run_says_that_it_compiles_before_the_first_step(capsys):
    with TrainingConsole() as screen:
        screen.on_phase("4 bits", 2, 10, Execution(compiled=True))
        screen.on_step(0, 1, 2.0, 30.0, 8)
    assert "4 bits: compiling the training step, which takes a minute or so" in capsys.readouterr().err


def test_the_last_figures_of_a_bar_give_way_in_a_narrow_terminal(monkeypatch):
    figures = ["epoch 1/10", "loss 0.123", "top-1 98.7 %", "1234 images/s"]
    for width, count in ((20, 1), (40, 2), (60, 4), (80, 4)):
        monkeypatch.setenv("COLUMNS", str(width))
        assert console.as_fit("4 bits", figures) == " ".join(figures[:count])
