"""Builds the extensions with ninja: parallel, incremental, flags by file name. Needs pybind11 and ninja, never torch.

Environment: CXX, CXXFLAGS, CUDA_HOME as usual; VIFAST_CUDA=auto|0|1 (auto: where nvcc is found);
VIFAST_CUDA_ARCHS, like "80;90"; VIFAST_ISA=auto|scalar (scalar: only the compiler's base instruction set);
VIFAST_SANITIZE, a value of -fsanitize.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
X86 = platform.machine().lower() in ("x86_64", "amd64")
# -fno-trapping-math: both sides of a ternary may be computed, without which gcc vectorises no loop that has one.
CXXFLAGS = "-O3 -std=c++17 -fPIC -fvisibility=hidden -fopenmp-simd -fno-trapping-math -Wall -Wextra"
NVCCFLAGS = "-O3 -std=c++17 -Xcompiler -fPIC,-fvisibility=hidden,-Wall -cudart static --threads 0"
LEVELS = {"scalar": "", "avx2": "-mavx2 -mfma", "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma"}
SHARED = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"


def option(name, *choices):
    """Value of an environment variable; the first choice where it is not set."""
    value = os.environ.get(name) or choices[0]
    if value not in choices:
        raise SystemExit(f"{name}: expected {', '.join(choices[:-1])} or {choices[-1]}, got {value!r}")
    return value


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = (home and f"{home}/bin/nvcc", shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc")
    return next((place for place in places if place and Path(place).exists()), None)


def simd_levels():
    return list(LEVELS) if option("VIFAST_ISA", "auto", "scalar") == "auto" and X86 else ["scalar"]


def cuda_archs():
    """Flags for one cubin per architecture, and PTX of the last for newer cards."""
    archs = os.environ.get("VIFAST_CUDA_ARCHS", "").replace(",", ";").split(";")
    if archs == [""]:  # an older nvcc does not know all of them
        known = subprocess.run(
            [find_nvcc(), "--list-gpu-arch"], capture_output=True, text=True, check=True
        ).stdout.split()
        archs = [arch for arch in ("80", "90", "100") if f"compute_{arch}" in known]
    code = [(arch, "sm") for arch in archs] + [(archs[-1], "compute")]
    return " ".join(f"-gencode arch=compute_{arch},code={kind}_{arch}" for arch, kind in code)


def escape(path):
    """A path as ninja reads it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def ninja_file(ext, target):
    """One edge per object: *.simd.cpp once per instruction set, *.cu with nvcc, all others with the C++ compiler."""
    folders = (sysconfig.get_path("include"), pybind11.get_include(), ROOT / "csrc")
    includes = " ".join(shlex.quote(f"-I{folder}") for folder in folders)
    levels, sanitize = simd_levels(), os.environ.get("VIFAST_SANITIZE", "")
    sanitizer = f"-fsanitize={sanitize} -fno-omit-frame-pointer -g" if sanitize else ""
    only = "-DVIFAST_SCALAR_ONLY" if levels == ["scalar"] else ""
    flags = f"{CXXFLAGS} {only} {sanitizer} {os.environ.get('CXXFLAGS', '')}"
    cxx, cuda = os.environ.get("CXX", "g++"), any(source.endswith(".cu") for source in ext.sources)
    compile_one = f"{includes} -MD -MF $out.d -c $in -o $out\n  deps = gcc\n  depfile = $out.d"
    lines = [
        f"rule cxx\n  command = {cxx} {flags} $extra {compile_one}",
        f"rule link\n  command = {cxx} {SHARED} {sanitizer} $in -o $out -ldl -lpthread",
    ]
    if cuda:
        nvcc = shlex.quote(find_nvcc())
        lines += [
            f"rule nvcc\n  command = {nvcc} {NVCCFLAGS} {cuda_archs()} {compile_one}",
            f"rule nvlink\n  command = {nvcc} -shared -cudart static --no-device-link $in -o $out",
        ]
    # All bindings in one translation unit: pybind11's headers are most of what a file of them costs to compile.
    parts = " ".join(f"-include {shlex.quote(str(ROOT / part))}" for part in sources("csrc/bind/*.cpp"))
    objects = []
    for source in ext.sources:
        simd, name = source.endswith(".simd.cpp"), Path(source).name
        for level in levels if simd else [""]:
            objects.append(escape(f"{name}.{level}.o" if simd else f"{name}.o"))
            lines.append(f"build {objects[-1]}: {'nvcc' if source.endswith('.cu') else 'cxx'} {escape(ROOT / source)}")
            unit = parts if name == "bindings.cpp" else ""
            lines.append(f"  extra = {LEVELS[level]} -DVIFAST_ISA={level}" if simd else f"  extra = {unit}")
    lines.append(f"build {escape(target)}: {'nvlink' if cuda else 'link'} {' '.join(objects)}\n")
    return "\n".join(lines)


class NinjaBuildExt(build_ext):
    def build_extension(self, ext):
        # An editable install gets a new temporary folder each time; only objects that stay make it incremental.
        temp = ROOT / "build" / "editable" if self.editable_mode else Path(self.build_temp)
        target, work = Path(self.get_ext_fullpath(ext.name)).resolve(), (temp / ext.name).resolve()
        for folder in (target.parent, work):
            folder.mkdir(parents=True, exist_ok=True)
        (work / "build.ninja").write_text(ninja_file(ext, target))
        subprocess.run([sys.executable, "-m", "ninja", "-C", work, "-v" if self.verbose > 1 else "--quiet"], check=True)


def sources(*patterns):
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


extensions = [Extension("vifast.kernels._C", sources("csrc/bindings.cpp", "csrc/cpu/*.cpp"))]
cuda = option("VIFAST_CUDA", "auto", "0", "1")
if cuda == "1" and not find_nvcc():
    raise SystemExit("VIFAST_CUDA=1 but nvcc was not found: put it on PATH or set CUDA_HOME")
if cuda != "0" and find_nvcc() and (cuda_sources := sources("csrc/cuda/*.cu")):
    extensions.append(Extension("vifast.kernels._CUDA", ["csrc/bindings_cuda.cpp", *cuda_sources]))

setup(ext_modules=extensions, cmdclass={"build_ext": NinjaBuildExt})
