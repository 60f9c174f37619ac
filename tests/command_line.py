"""The command line run in this process: its JSON, and its one line of error."""

import json

from nbsnn.cli import main


def printed(capsys, *words):
    """What a command prints with --json."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *words):
    """The line with which a command ends that exits with 2."""
    capsys.readouterr()
    assert main([*words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line
