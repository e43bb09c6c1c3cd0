"""Imports go one way, and importing costs little and needs nothing optional."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each layer may import those before it. Names of one layer do not import each other.
LAYERS = [
    {"kernels"},
    {"functional"},
    {"losses", "nn", "models", "data", "retrieval", "report"},
    {"systems"},
    {"train"},
    {"bench"},
    {"demo", "retrieval_output"},
    {"commands_bench", "commands_data", "commands_lifelong", "commands_retrieval"},
    {"commands"},
    {"cli"},
    {"aot_launches"},
    {"testing", "aot"},  # of tests and benchmarks: nothing imports them
]
ALONE = {"kernels", "report"}  # these know nothing of vifast but themselves
EVERYWHERE = {"_checks", "_draws", "_files", "_progress", "_version", "__version__"}
OPTIONAL = ("triton", "PIL", "accelerate", "jinja2", "matplotlib", "pydantic", "rich", "safetensors", "typer", "yaml")
OPTIONAL += ("faiss", "nvidia")

FILES = sorted([*ROOT.glob("vifast/**/*.py"), *ROOT.glob("kernels/*.py")])


def layer(name):
    return next(level for level, names in enumerate(LAYERS) if name in names)


def vifast_imports(path):
    """First name below ``vifast`` of everything a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules = [f"vifast.{alias.name}" for alias in node.names] if node.module == "vifast" else [node.module]
        else:
            continue
        yield from (module.split(".")[1] for module in modules if module.startswith("vifast."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    own = parts[0] if parts[0] == "kernels" else parts[1]
    if own == "__init__" or own in EVERYWHERE:
        return
    for name in set(vifast_imports(path)) - EVERYWHERE - {own}:
        assert own not in ALONE, f"{own} may not import vifast.{name}"
        assert layer(name) < layer(own), f"{own} may not import vifast.{name}"


def test_every_module_has_a_layer():
    known = set().union(*LAYERS) | EVERYWHERE | {"__init__"}
    assert {
        path.stem if path.is_file() else path.name for path in ROOT.glob("vifast/[!_]*") if path.suffix in ("", ".py")
    } <= known


def python(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_core_needs_torch_and_numpy_only():
    code = f"""
import sys
for name in {OPTIONAL}:
    sys.modules[name] = None  # as if it were not installed
import torch, vifast
from vifast import functional, losses, nn, models, retrieval, systems
feat, labels = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]), torch.tensor([0, 0, 1, 1])
print(functional.triplet_loss(feat, labels, margin=0.5).item(), retrieval.evaluate(feat, feat, labels, labels).mean_ap)
"""
    assert python(code) == "0.0 1.0"


def test_import_costs_little():
    """``import vifast`` loads no submodule, and the ops load nothing optional beyond Triton."""
    code = """
import sys, time
import torch
before, start = set(sys.modules), time.process_time()
import vifast
seconds = time.process_time() - start
assert not any(name.startswith("vifast.") and name != "vifast._version" for name in sys.modules), sys.modules.keys()
import vifast.functional, vifast.losses, vifast.nn, vifast.retrieval
print(seconds, *({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    seconds, *loaded = python(code).split()
    assert not set(loaded) & (set(OPTIONAL) - {"triton"})
    assert float(seconds) < 0.1
