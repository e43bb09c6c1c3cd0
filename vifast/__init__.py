"""vifast: fused kernels, exact retrieval and trainable systems for visible-infrared person re-identification."""

from vifast._version import __version__

__all__ = ["__version__"]
