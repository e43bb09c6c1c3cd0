"""What the docs show is run: docstring examples, Python blocks of the pages, names of targets and commands."""

import dataclasses
import doctest
import importlib
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import vifast

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
MODULES = sorted(
    m.name for m in pkgutil.walk_packages(vifast.__path__, "vifast.") if not m.name.startswith("vifast.kernels._C")
)
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).failed == 0


@pytest.mark.parametrize("name", ["functional", "losses", "nn", "retrieval"])
def test_every_public_name_has_an_example(name):
    module = importlib.import_module(f"vifast.{name}")
    assert module.__all__
    for public in (getattr(module, public) for public in module.__all__):
        if dataclasses.is_dataclass(public):  # a record says what it holds
            continue
        assert ">>> " in (public.__doc__ or ""), f"{public.__name__} has no example"


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "block.py"  # Triton reads the source of its kernels from the file
    file.write_text(block)
    runpy.run_path(str(file))


def test_there_are_blocks_to_run():
    assert {param.id.partition("-")[0] for param in BLOCKS} >= {"README.md", "CONTRIBUTING.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_targets_and_commands_exist(page):
    text = page.read_text()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", prose):
        assert (page.parent / link).exists(), f"{page.name}: no file {link}"
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    from vifast.commands import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    commands |= {group.name for group in app.registered_groups}
    assert set(re.findall(r"(?:^|`)vifast ([a-z]+)", text, re.MULTILINE)) <= commands


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_numbers_are_those_of_the_record():
    """Of the pages' tables, the README's ops and the kernels' docstrings."""
    command = [sys.executable, "benchmarks/table.py", "--check"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    told = {path.stem for path in ROOT.glob("kernels/*.py") if re.search(r"^Measured ", path.read_text(), re.MULTILINE)}
    known = runpy.run_path(str(ROOT / "benchmarks/claims.py"))["KERNELS"]
    assert told == set(known), "a number that no command wrote"


def test_nothing_of_one_machine_is_in_the_tree():
    """No absolute path of a home, a mount or this checkout, and no unfinished work, in any text that is tracked."""
    places = "|".join(("home", "root", "Users", "mnt", "opt", "srv", "work", "workspace"))
    path = re.compile(rf"(?<![\w.~*)\]}}>-])/(?:{places})/|{re.escape(str(ROOT))}")
    unfinished = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")))
    for file in tracked():
        try:
            text = file.read_text()
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            assert not path.search(line), f"{file.name}:{number}: {line.strip()}"
            assert not unfinished.search(line), f"{file.name}:{number}: {line.strip()}"
