"""Ops of vifast, one file each. Importable only under the name ``vifast.kernels``."""

if __name__ != "vifast.kernels":
    # A second copy under another name would register every op twice, and torch does not complain.
    raise ImportError("import vifast.kernels, not kernels: run `pip install -e .` and import from outside the root")
