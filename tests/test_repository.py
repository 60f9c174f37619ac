"""The repository's own files: settings of the site, workflows and citation are well-formed and agree with each other."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_one_version_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in citation


def test_workflows_run_on_the_versions_of_python_that_the_package_names():
    named = set(re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"])))
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    assert set(re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", workflow)[1])) == named
    oldest = re.search(r"torch==([\d.]+)\.\*", workflow)[1]
    assert f"torch>={oldest}" in PROJECT["dependencies"]


def test_every_page_is_in_the_navigation_of_the_site():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    linked = set(re.findall(r": ([\w./-]+\.(?:md|ipynb))$", text, re.MULTILINE)) - {"reference/commands.md"}
    docs = ROOT / "docs"
    pages = {page.relative_to(docs).as_posix() for kind in ("md", "ipynb") for page in docs.glob(f"**/*.{kind}")}
    assert linked == pages
