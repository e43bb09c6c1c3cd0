"""What is built is what is installed: content of the wheel and the sdist, links of the extension, build options."""

import email
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import vifast
from vifast.kernels import _C

ROOT = Path(__file__).parents[1]
SHIPPED = ("csrc", "kernels", "vifast", "pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md")
# The content does not depend on optimisation, and one instruction set is the build for other processors.
QUICK = {"CXXFLAGS": "-O0", "VIFAST_ISA": "scalar", "VIFAST_CUDA": "0"}


def run(*command, cwd, **environment):
    """Standard output of a command that must succeed; the checkout is not on the path of the Python it starts."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A copy of the sources without anything built, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("clean checkout")
    unwanted = shutil.ignore_patterns("*.so", "__pycache__")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="session")
def built(source, tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=source, **QUICK)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="session")
def unpacked(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    zipfile.ZipFile(built[1]).extractall(folder)
    return folder


def files(folder, *patterns):
    return {str(path.relative_to(folder)) for pattern in patterns for path in folder.rglob(pattern)}


def test_wheel_holds_every_source_and_nothing_else(unpacked, source):
    expected = files(source / "vifast", "*.py", "*.yaml", "*.j2", "py.typed")
    expected |= {f"kernels/{name}" for name in files(source / "kernels", "*.py")}
    (extension,) = unpacked.glob("vifast/kernels/_C.*.so")
    expected.add(f"kernels/{extension.name}")
    assert {name for name in files(unpacked / "vifast", "*") if (unpacked / "vifast" / name).is_file()} == expected
    (info,) = unpacked.glob("*.dist-info")
    assert {path.name for path in unpacked.iterdir()} == {"vifast", info.name}
    assert (info / "top_level.txt").read_text().split() == ["vifast"]
    assert (info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_metadata(unpacked):
    (path,) = unpacked.glob("*.dist-info/METADATA")
    metadata = email.message_from_string(path.read_text())
    assert metadata["Name"] == "vifast"
    assert metadata["Version"] == vifast.__version__ == importlib.metadata.version("vifast")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    core = {line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert core == {"torch>=2.6", "numpy>=1.26"}
    assert set(metadata.get_all("Provides-Extra")) >= {"train", "dali", "bench", "dev"}


def test_sdist_holds_what_a_build_needs(built, source):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert files(source, "*.h", "*.cpp", "*.cu", "*.py") | set(SHIPPED) <= names
    assert not any(name.startswith(("tests/", "benchmarks/")) or name.endswith((".so", ".o")) for name in names)


def test_extension_links_neither_torch_nor_openmp(unpacked):
    if shutil.which("ldd") is None:
        pytest.skip("no ldd here")
    (built_here,) = unpacked.glob("vifast/kernels/_C.*.so")
    for extension in (built_here, _C.__file__):
        linked = run("ldd", extension, cwd=unpacked)
        assert "libstdc++" in linked
        assert not any(name in linked for name in ("torch", "gomp", "libpython", "libcudart"))


def test_scalar_build_answers_so_and_refuses_more(unpacked):
    (extension,) = unpacked.glob("vifast/kernels/_C.*.so")
    spec = importlib.util.spec_from_file_location("_C", extension)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.isa() == "scalar"
    assert module.set_isa("scalar")
    assert not module.set_isa("avx2")
    assert not module.set_isa("avx512")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the levels are those of x86-64")
def test_default_build_has_the_levels_of_this_processor():
    before = _C.isa()
    try:
        assert [name for name in ("scalar", "avx2", "avx512") if _C.set_isa(name)][-1] == before
    finally:
        _C.set_isa(before)
    with pytest.raises(ValueError, match="name: expected scalar, avx2 or avx512, got sse"):
        _C.set_isa("sse")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("VIFAST_CUDA", "2", "VIFAST_CUDA: expected auto, 0 or 1, got '2'"),
        ("VIFAST_ISA", "avx2", "VIFAST_ISA: expected auto or scalar, got 'avx2'"),
    ],
)
def test_unknown_build_option_is_refused(source, name, value, message):
    command = [sys.executable, "setup.py", "build_ext"]
    done = subprocess.run(
        command, cwd=source, env={**os.environ, name: value}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert message in done.stderr


STUB = """
#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() { return PyModule_Create(&module); }
"""


@pytest.mark.parametrize("mode", ["default", "strict"])
def test_editable_install_finds_the_ops(source, tmp_path, mode):
    """The mapping of folders is what is in question: an empty extension stands in for the real one."""
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    shutil.copytree(source, checkout, ignore=shutil.ignore_patterns("csrc"))
    (checkout / "csrc").mkdir()
    (checkout / "csrc" / "bindings.cpp").write_text(STUB)
    settings = ["--config-settings", "editable_mode=strict"] if mode == "strict" else []
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    run(*install, "--target", site, *settings, "-e", checkout, cwd=tmp_path, **QUICK)
    code = f"import site; site.addsitedir({str(site)!r}); import vifast.kernels._C as c; print(c.__file__)"
    assert Path(run(sys.executable, "-S", "-c", code, cwd=tmp_path).strip()).is_relative_to(checkout)


def test_bare_checkout_says_that_it_is_not_installed(source):
    """Python puts the current folder first: there lies ``vifast`` without ``vifast.kernels``."""
    hide = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
    for statement in ("import vifast.functional", "import vifast; vifast.losses"):
        done = subprocess.run(
            [sys.executable, "-c", hide + statement], cwd=source, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        assert "this is a source checkout that is not installed: run `pip install -e .`" in done.stderr


def test_ops_load_under_one_name_only(source):
    done = subprocess.run(
        [sys.executable, "-c", "import kernels"], cwd=source, capture_output=True, text=True, check=False
    )
    assert "ImportError: import vifast.kernels, not kernels" in done.stderr


def test_tests_import_the_installed_package():
    record = importlib.metadata.distribution("vifast").read_text("direct_url.json")
    editable = record is not None and json.loads(record).get("dir_info", {}).get("editable", False)
    assert Path(vifast.__file__).is_relative_to(ROOT / "vifast") == editable
