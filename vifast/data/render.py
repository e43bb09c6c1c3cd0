"""A small NumPy rasteriser: parts to fragments, fragments to a visible or a near-infrared picture.

Geometry is rasterised once, at `SUPERSAMPLE` times the size of the picture, into fragments: which material a
sample shows, how far it turns from the camera and where it lies on the cloth. The two sensors shade the same
fragments with different reflectances and lights; neither sees the other's picture.
"""

from dataclasses import dataclass

import numpy as np

from vifast.data.people import NUM_MATERIALS, Cloth, Pattern
from vifast.data.pose import Capsule, Part, Tube

SUPERSAMPLE = 2


@dataclass(frozen=True)
class Frame:
    """Where a body lands on a picture of `height` x `width` samples: body lengths times `scale` from the feet."""

    height: int
    width: int
    scale: float
    feet: tuple[float, float]  # x, y in samples
    pitch: float  # a camera from above shows the upper body larger


@dataclass(frozen=True)
class Fragments:
    """What each sample shows, `[H, W]` each.

    `material` is 0 where the background shows and `turn` runs from -1 to 1 across a part; `along` and `up` are the
    place on the cloth: the way round the body from its front, and the height.
    """

    material: np.ndarray
    turn: np.ndarray
    along: np.ndarray
    up: np.ndarray


def rasterise(parts: list[Part], frame: Frame) -> Fragments:
    """Paint `parts`, in order, into fragments."""
    shape = frame.height, frame.width
    out = Fragments(np.zeros(shape, np.uint8), *(np.zeros(shape, np.float32) for _ in range(3)))
    for part in parts:
        (_tube if isinstance(part, Tube) else _capsule)(out, part, frame)
    return out


def pattern_share(pattern: Pattern, along: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Share (0..1) of the second colour at cloth coordinates `along` (round the body from its front) and `up`."""
    period, duty, level = pattern.period, pattern.duty, pattern.level
    rows, columns = (up / period) % 1.0 < duty, (along / period) % 1.0 < duty
    match pattern.kind:
        case "rings":
            share = rows
        case "stripes":
            share = columns
        case "checks":
            share = rows ^ columns
        case "plaid":
            share = 0.5 * rows + 0.5 * columns
        case "dots":
            share = np.hypot((along / period) % 1.0 - 0.5, (up / period) % 1.0 - 0.5) < 0.36
        case "diagonal":
            share = ((up + along) / period) % 1.0 < duty
        case "yoke":
            share = up > level
        case "band":
            share = np.abs(up - level) < 0.5 * period
        case "panel":
            share = np.abs(along) < 0.35 * period
        case "print":
            share = (np.abs(np.abs(along) - 0.02) < 0.055) & (np.abs(up - level) < 0.5 * period)
        case _:
            share = np.zeros(along.shape)
    return np.asarray(share, np.float32)


def shade(
    parts: Fragments, materials: dict[int, Cloth], channel: str, light: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Radiance `[h, w, C]` and coverage `[h, w, 1]` at picture size, the radiance multiplied by the coverage.

    `channel` names the reflectance (`"rgb"` or `"nir"`); `light` is the share of light that comes from all
    sides and the lateral direction (-1..1) of the rest.
    """
    reflectance = {material: getattr(cloth, channel).reshape(2, -1) for material, cloth in materials.items()}
    table = np.zeros((NUM_MATERIALS, reflectance[1].shape[1]), np.float32)
    for material, value in reflectance.items():
        table[material] = value[0]
    albedo = table[parts.material]
    for material, cloth in materials.items():
        if cloth.pattern.kind == "plain":
            continue
        at = np.nonzero(parts.material == material)
        share = pattern_share(cloth.pattern, parts.along[at], parts.up[at])[:, None]
        first, second = reflectance[material].astype(np.float32)
        albedo[at] = first + share * (second - first)
    ambient, lateral = light
    facing = np.sqrt(np.maximum(1.0 - parts.turn**2, 0.0))
    lit = ambient + (1.0 - ambient) * np.maximum(facing * np.float32(np.sqrt(1 - lateral**2)) + parts.turn * lateral, 0)
    inside = (parts.material > 0).astype(np.float32)
    return _shrink(albedo * (lit * inside)[..., None]), _shrink(inside[..., None])


def _shrink(image: np.ndarray) -> np.ndarray:
    s = SUPERSAMPLE
    height, width, channels = image.shape
    return image.reshape(height // s, s, width // s, s, channels).mean((1, 3))


def _to_samples(x: np.ndarray, y: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    zoom = 1.0 + frame.pitch * (y - 0.5)
    return frame.feet[0] + frame.scale * x * zoom, frame.feet[1] - frame.scale * y * (
        1.0 + 0.5 * frame.pitch * (y - 1.0)
    )


def _window(low: float, high: float, size: int) -> slice:
    return slice(min(max(int(low), 0), size), min(max(int(high) + 2, 0), size))


def _paint(out: Fragments, window: tuple[slice, slice], inside: np.ndarray, part: Part, turn, along, up) -> None:
    out.material[window][inside] = part.material
    for plane, value in ((out.turn, turn), (out.along, along), (out.up, up)):
        np.copyto(plane[window], value, where=inside)


def _tube(out: Fragments, tube: Tube, frame: Frame) -> None:
    x, y = _to_samples(np.full(len(tube.heights), tube.center), tube.heights, frame)
    widths = tube.widths * frame.scale * (1.0 + frame.pitch * (tube.heights - 0.5))
    window = _window(y[0], y[-1], frame.height), _window((x - widths).min(), (x + widths).max(), frame.width)
    rows = np.arange(window[0].start, window[0].stop) + 0.5
    columns = np.arange(window[1].start, window[1].stop, dtype=np.float32) + np.float32(0.5)
    center, width, up = (np.interp(rows, y, knots)[:, None].astype(np.float32) for knots in (x, widths, tube.heights))
    turn = (columns - center) / width
    inside = (np.abs(turn) < 1.0) & ((rows > y[0]) & (rows < y[-1]))[:, None]
    turn = np.clip(turn, -1.0, 1.0)
    angle = (np.arcsin(turn) - np.float32(tube.turn) + np.pi) % (2 * np.pi) - np.pi
    _paint(out, window, inside, tube, turn, angle * tube.girth, up)


def _capsule(out: Fragments, limb: Capsule, frame: Frame) -> None:
    ends = np.array(limb.ends)
    x, y = _to_samples(ends[:, 0], ends[:, 1], frame)
    radii = np.array(limb.radii) * frame.scale
    reach = radii.max()
    window = (
        _window(y.min() - reach, y.max() + reach, frame.height),
        _window(x.min() - reach, x.max() + reach, frame.width),
    )
    dx, dy = np.float32(x[1] - x[0]), np.float32(y[1] - y[0])
    px = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None] + np.float32(0.5 - x[0])
    py = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None] + np.float32(0.5 - y[0])
    length = max(float(dx * dx + dy * dy), 1e-6)
    share = np.clip((px * dx + py * dy) / np.float32(length), 0.0, 1.0)
    gap_x, gap_y = px - share * dx, py - share * dy
    radius = np.float32(radii[0]) + share * np.float32(radii[1] - radii[0])
    inside = gap_x * gap_x + gap_y * gap_y < radius * radius
    # Signed by the side of the limb: along x where the limb is steep, else along y.
    across = np.clip((gap_x if abs(dy) >= abs(dx) else gap_y) / radius, -1.0, 1.0)
    up = np.float32(limb.heights[0]) + share * np.float32(limb.heights[1] - limb.heights[0])
    _paint(out, window, inside, limb, across, across * np.float32(limb.radii[0]), up)
