"""What MkDocs needs beyond the pages themselves: the reference of commands, the index of names, links out of docs/."""

import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

import nbsnn
from nbsnn.cli import app

_OUTWARD = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!reference/)(?P<path>[\w./-]+)(?:#[\w-]+)?\)")
_HEAD = "The texts of `nbsnn VERB --help`.\n"


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add reference/commands.md and the list of public names on reference/index.md."""
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files of the repository that are no pages become their paths; the index of names is filled in."""
    if page.file.src_uri == "reference/index.md":
        markdown = markdown.replace("<!-- names -->", names(Path(page.file.abs_src_path)))
    return _OUTWARD.sub(lambda match: f"{match[1]} (`{match['path']}`)", markdown)


def commands() -> str:
    """One section for each verb."""
    parts = ["# Command line\n", _HEAD]
    for name, verb in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        context = typer.Context(verb, info_name=f"nbsnn {name}", terminal_width=100, max_content_width=100)
        parts += [f"## {name}\n", "```text", verb.get_help(context), "```\n"]
    return "\n".join(parts)


def names(index: Path) -> str:
    """Every public name and the page that documents it.

    Raises:
        SystemExit: a name is documented on no page.
    """
    found: dict[str, str] = {}
    for page in sorted(index.parent.glob("*.md")):
        for path in re.findall(r"^::: (nbsnn\.[\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            found[path.rpartition(".")[2]] = f"{page.name}#{path}"
    missing = set(nbsnn.__all__) - set(found) - {"__version__"}
    if missing:
        raise SystemExit(f"no page in docs/reference documents {', '.join(sorted(missing))}")
    return " · ".join(f"[{name}]({page})" for name, page in sorted(found.items(), key=lambda item: item[0].lower()))
