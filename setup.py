"""Builds the extensions with ninja: parallel, incremental, flags by file name. Needs pybind11 and ninja, never torch."""

import os
import platform
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
LEVELS = {"scalar": "", "avx2": "-mavx2 -mfma", "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma"}
CXXFLAGS = "-O3 -std=c++17 -fPIC -fvisibility=hidden -fopenmp-simd -Wall -Wextra"
NVCCFLAGS = "-O3 -std=c++17 -Xcompiler -fPIC,-fvisibility=hidden -cudart static -Xptxas -v"


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    for candidate in (home and Path(home, "bin", "nvcc"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if candidate and Path(candidate).exists():
            return str(candidate)
    return None


def wants_cuda():
    choice = os.environ.get("VIFAST_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"VIFAST_CUDA: expected auto, 0 or 1, got {choice!r}")
    if choice == "1" and find_nvcc() is None:
        raise SystemExit("VIFAST_CUDA=1 but nvcc was not found: put it on PATH or set CUDA_HOME")
    return choice != "0" and find_nvcc() is not None


def cuda_archs():
    """One cubin per listed architecture, and PTX of the last for newer cards."""
    archs = os.environ.get("VIFAST_CUDA_ARCHS", "80;90;100").replace(",", ";").split(";")
    flags = [f"-gencode arch=compute_{a},code=sm_{a}" for a in archs]
    return " ".join([*flags, f"-gencode arch=compute_{archs[-1]},code=compute_{archs[-1]}"])


class NinjaBuildExt(build_ext):
    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        work = Path(self.build_temp).resolve() / ext.name
        work.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        (work / "build.ninja").write_text(self.ninja_file(ext, target))
        command = [
            sys.executable,
            "-m",
            "ninja",
            "-C",
            str(work),
            *(["-v"] if self.verbose > 1 else ["--quiet"]),
        ]
        subprocess.run(command, check=True)

    def ninja_file(self, ext, target):
        includes = f"-I{sysconfig.get_path('include')} -I{pybind11.get_include()} -I{ROOT / 'csrc'}"
        sanitize = os.environ.get("VIFAST_SANITIZE", "")
        extra = f"-fsanitize={sanitize} -fno-omit-frame-pointer -g" if sanitize else ""
        lines = [
            f"cxx = {os.environ.get('CXX', 'g++')}",
            f"flags = {CXXFLAGS} {extra} {os.environ.get('CXXFLAGS', '')} {includes}",
            "rule cxx\n  command = $cxx $flags $isa -MMD -MF $out.d -c $in -o $out\n  deps = gcc\n  depfile = $out.d",
            f"rule nvcc\n  command = {find_nvcc()} {NVCCFLAGS} {cuda_archs()} {includes} -MD -MF $out.d -c $in -o $out"
            "\n  deps = gcc\n  depfile = $out.d",
            f"rule link\n  command = $cxx -shared {extra} $in -o $out -ldl -lpthread",
            f"rule nvlink\n  command = {find_nvcc()} -shared -cudart static $in -o $out",
        ]
        objects = []
        for source in ext.sources:
            path = ROOT / source
            for level, isa in (LEVELS if source.endswith(".simd.cpp") else {"": ""}).items():
                if level not in ("", "scalar") and not X86:
                    continue
                obj = f"{Path(source).name}{'.' + level if level else ''}.o"
                rule = "nvcc" if source.endswith(".cu") else "cxx"
                isa_flags = f"{isa} -DVIFAST_ISA={level}" if level else ""
                lines.append(f"build {obj}: {rule} {path}\n  isa = {isa_flags}")
                objects.append(obj)
        link = "nvlink" if any(source.endswith(".cu") for source in ext.sources) else "link"
        lines.append(f"build {target}: {link} {' '.join(objects)}\n")
        return "\n".join(lines)


def sources(*patterns):
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


extensions = [Extension("vifast.kernels._C", sources("csrc/bindings.cpp", "csrc/bind/*.cpp", "csrc/cpu/*.cpp"))]
if wants_cuda():
    extensions.append(Extension("vifast.kernels._CUDA", sources("csrc/bindings_cuda.cpp", "csrc/cuda/*.cu")))

setup(ext_modules=extensions, cmdclass={"build_ext": NinjaBuildExt})
