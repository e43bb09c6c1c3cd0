"""``triton`` and ``tl``, or inert stand-ins, so that every op file imports where Triton does not exist."""

try:
    import triton
    import triton.language as tl
except ImportError:

    class _Absent:
        """Answers every attribute with itself, and a call with the function it decorates."""

        def __getattr__(self, name):
            return self

        def __call__(self, *args, **kwargs):
            return args[0] if args and callable(args[0]) else self

        def __getitem__(self, grid):
            raise RuntimeError("this op has no kernel for this device: Triton is not installed")

    triton = tl = _Absent()

__all__ = ["tl", "triton"]
