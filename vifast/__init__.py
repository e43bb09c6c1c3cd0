"""vifast: fused kernels, exact retrieval and trainable systems for visible-infrared person re-identification."""

import importlib
import importlib.util

from vifast._version import __version__

if importlib.util.find_spec("vifast.kernels") is None:
    raise ImportError("this is a source checkout that is not installed: run `pip install -e .` in its root")

__all__ = [
    "__version__",
    "cli",
    "data",
    "functional",
    "losses",
    "models",
    "nn",
    "report",
    "retrieval",
    "systems",
    "train",
    "use_progress",
    "use_reference",
]


def use_reference():
    """Context manager under which every op runs its definition in plain PyTorch: for tests, debugging and A/B timing.

    Example:
        >>> import torch, vifast
        >>> with vifast.use_reference():
        ...     loss = vifast.functional.triplet_loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    """
    from vifast import functional  # noqa: F401 - registers the ops
    from vifast.kernels._registry import forced

    return forced("definition")


def use_progress(wrap):
    """Context manager under which extraction, evaluation and re-ranking show how far they are: where they would iterate
    over their steps, which have a length, they iterate over ``wrap(steps, name)``. So with
    ``wrap=lambda steps, name: tqdm(steps, desc=name)``. Loops may be nested, trials around the blocks of one. What
    other threads and tasks do is not wrapped.

    Example:
        >>> import torch, vifast
        >>> def told(steps, name):
        ...     print(f"{name}: {len(steps)}")
        ...     yield from steps
        >>> with vifast.use_progress(told):
        ...     metrics = vifast.retrieval.evaluate(torch.eye(2), torch.eye(2), torch.arange(2), torch.arange(2))
        ranking: 1
    """
    from vifast._progress import wrapped

    return wrapped(wrap)


def __getattr__(name):
    """Submodules load on first use: ``import vifast`` itself costs next to nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'vifast' has no attribute {name!r}")
    return importlib.import_module(f"vifast.{name}")
