from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """``gpu`` are the sizes on a card, where they are not ``sizes``; of what a card does not run there are none."""

    op: str
    sizes: tuple[tuple[int, ...], ...]
    build: Callable[..., dict]
    gpu: tuple[tuple[int, ...], ...] | None = None
    settle: bool = False  # run everything once before each time it is timed, see vifast.bench.measure.interleaved
    seconds: int = 6  # to time the first pass in, a third of it for every other

    def sizes_on(self, device):
        return self.sizes if device == "cpu" or self.gpu is None else self.gpu

    def passes(self, *size, device="cpu"):
        """{pass: {provider: callable}}; what has no gradient has its forward pass alone."""
        built = self.build(*size, device=device)
        return built if "both" in built or "forward" in built else {"forward": built}
