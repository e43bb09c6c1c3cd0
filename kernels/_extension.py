"""The CUDA extension, where it was built."""

try:
    from vifast.kernels import _CUDA
except ImportError:  # without nvcc
    _CUDA = None
