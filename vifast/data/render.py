"""A small NumPy rasteriser: parts to fragments, fragments to a visible or a near-infrared picture.

Geometry is rasterised once, at `SUPERSAMPLE` times the size of the picture, into fragments: which material a sample
shows, how far it turns from the camera and where it lies on the cloth. The two sensors shade the same fragments with
different reflectances and lights; neither sees the other's picture.
"""

from dataclasses import dataclass

import numpy as np

from vifast.data.people import NUM_MATERIALS, SKIN, Cloth, Pattern
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

    `channel` names the reflectance (`"rgb"` or `"nir"`); `light` is the share of light that comes from all sides and
    the lateral direction (-1..1) of the rest.
    """
    reflectance = {m: getattr(cloth, channel).reshape(2, -1).astype(np.float32) for m, cloth in materials.items()}
    table = np.zeros((NUM_MATERIALS, reflectance[SKIN].shape[1]), np.float32)
    for material, value in reflectance.items():
        table[material] = value[0]
    shape = parts.material.shape
    covered = np.flatnonzero(parts.material)
    material, turn = parts.material.reshape(-1)[covered], parts.turn.reshape(-1)[covered]
    albedo = table[material]
    for number, cloth in materials.items():
        if cloth.pattern.kind != "plain":
            at = np.flatnonzero(material == number)
            along, up = (plane.reshape(-1)[covered[at]] for plane in (parts.along, parts.up))
            first, second = reflectance[number]
            albedo[at] = first + pattern_share(cloth.pattern, along, up)[:, None] * (second - first)
    ambient, lateral = light
    direct = np.sqrt(np.maximum(1.0 - turn * turn, 0.0)) * np.float32(np.sqrt(1.0 - lateral**2)) + turn * np.float32(
        lateral
    )
    albedo *= (np.float32(ambient) + np.float32(1.0 - ambient) * np.maximum(direct, 0.0))[:, None]
    radiance = np.zeros((shape[0] * shape[1], albedo.shape[1]), np.float32)
    radiance[covered] = albedo
    return _shrink(radiance.reshape(*shape, -1)), _shrink((parts.material > 0)[..., None].astype(np.float32))


def _shrink(image: np.ndarray) -> np.ndarray:
    """Mean of SUPERSAMPLE x SUPERSAMPLE blocks."""
    s = SUPERSAMPLE
    return sum(image[y::s, x::s] for y in range(s) for x in range(s)) * np.float32(1.0 / s**2)


def _zoom(y, frame: Frame):
    """Samples per body length at height `y`: a camera from above enlarges what is near it."""
    return frame.scale * (1.0 + frame.pitch * (y - 0.5))


def _row(y, frame: Frame):
    return frame.feet[1] - frame.scale * y * (1.0 + 0.5 * frame.pitch * (y - 1.0))


def _window(low: float, high: float, size: int) -> slice:
    return slice(min(max(int(low), 0), size), min(max(int(high) + 2, 0), size))


def _paint(out: Fragments, window: tuple[slice, slice], inside: np.ndarray, part: Part, turn, along, up) -> None:
    out.material[window][inside] = part.material
    for plane, value in ((out.turn, turn), (out.along, along), (out.up, up)):
        np.copyto(plane[window], value, where=inside)


def _tube(out: Fragments, tube: Tube, frame: Frame) -> None:
    y, zoom = _row(tube.heights, frame), _zoom(tube.heights, frame)
    x, widths = frame.feet[0] + tube.center * zoom, tube.widths * zoom
    window = _window(y[0], y[-1], frame.height), _window((x - widths).min(), (x + widths).max(), frame.width)
    rows = np.arange(window[0].start, window[0].stop) + 0.5
    columns = np.arange(window[1].start, window[1].stop, dtype=np.float32) + np.float32(0.5)
    center, width, up = (np.interp(rows, y, knots)[:, None].astype(np.float32) for knots in (x, widths, tube.heights))
    turn = (columns - center) / width
    inside = (np.abs(turn) < 1.0) & ((rows > y[0]) & (rows < y[-1]))[:, None]
    turn = np.minimum(np.maximum(turn, -1.0), 1.0)
    angle = (np.arcsin(turn) + np.float32(np.pi - tube.turn)) % np.float32(2 * np.pi) - np.float32(np.pi)
    _paint(out, window, inside, tube, turn, angle * np.float32(tube.girth), up)


def _capsule(out: Fragments, limb: Capsule, frame: Frame) -> None:
    (xa, ya), (xb, yb) = limb.ends
    xa, xb = frame.feet[0] + xa * _zoom(ya, frame), frame.feet[0] + xb * _zoom(yb, frame)
    ya, yb = _row(ya, frame), _row(yb, frame)
    ra, rb = (radius * frame.scale for radius in limb.radii)
    reach = max(ra, rb)
    window = (
        _window(min(ya, yb) - reach, max(ya, yb) + reach, frame.height),
        _window(min(xa, xb) - reach, max(xa, xb) + reach, frame.width),
    )
    dx, dy = xb - xa, yb - ya
    # Python floats scale float32 arrays without widening them.
    px = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None] + float(0.5 - xa)
    py = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None] + float(0.5 - ya)
    unit = 1.0 / max(float(dx * dx + dy * dy), 1e-6)
    share = np.minimum(np.maximum(px * float(dx * unit) + py * float(dy * unit), 0.0), 1.0)
    gap_x, gap_y = px - share * float(dx), py - share * float(dy)
    radius = share * float(rb - ra) + float(ra)
    inside = gap_x * gap_x + gap_y * gap_y < radius * radius
    # Signed by the side of the limb: along x where the limb is steep, else along y.
    across = np.minimum(np.maximum((gap_x if abs(dy) >= abs(dx) else gap_y) / radius, -1.0), 1.0)
    up = share * float(limb.heights[1] - limb.heights[0]) + float(limb.heights[0])
    _paint(out, window, inside, limb, across, across * float(limb.radii[0]), up)
