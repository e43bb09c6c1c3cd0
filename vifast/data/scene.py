"""Cameras of a synthetic dataset: viewpoint, light, background and sensor, and one picture taken by them."""

from dataclasses import dataclass

import numpy as np

from vifast.data.domains import DOMAINS, Domain
from vifast.data.people import Person, warm_materials
from vifast.data.pose import pose
from vifast.data.render import SUPERSAMPLE, Frame, rasterise, shade

INFRARED_GAIN = 1.15


@dataclass(frozen=True)
class Camera:
    """One camera: what it looks at and how it records it.

    `background [H, W, C]` is linear radiance on a margin wider than a picture, so that each picture shows another
    crop; C is 3 for a visible camera and 1 for an infrared one.
    """

    infrared: bool
    azimuth: float
    pitch: float
    fill: float  # share of the picture's height a body of stature 1 takes
    light: tuple[float, float]
    cast: np.ndarray
    noise: float
    background: np.ndarray
    thermal: bool = False
    haze: float = 0.0


def draw_camera(
    rng: np.random.Generator,
    *,
    infrared: bool,
    outdoor: bool,
    size: tuple[int, int],
    difficulty: float,
    domain: Domain = DOMAINS["plain"],
) -> Camera:
    """Draw a camera for pictures of `size` (height, width)."""
    thermal = infrared and domain.thermal
    channels = 1 if infrared else 3
    warm = rng.uniform(-0.22, 0.22) * (0.4 + difficulty)
    cast = np.array([1.0 + warm, 1.0, 1.0 - warm])
    return Camera(
        infrared=infrared,
        azimuth=rng.uniform(-1.0, 1.0) * (0.5 + (np.pi - 0.5) * difficulty),
        pitch=rng.uniform(0.0, 0.12) + domain.pitch,
        fill=rng.uniform(0.86, 0.92),
        # The infrared lamp sits on the camera: what faces it is bright, edges fall off.
        # Warmth leaves in all directions.
        light=(0.8 if thermal else 0.3, 0.0) if infrared else (rng.uniform(0.5, 0.7), rng.uniform(-0.7, 0.7)),
        cast=(np.full(1, domain.lamp) if infrared else cast * (1.25 if outdoor else 0.95) * domain.light).astype(
            np.float32
        ),
        noise=(0.012 + 0.03 * difficulty * (1.6 if infrared else 1.0)) * domain.noise,
        background=_background(rng, size, channels, outdoor) * np.float32(0.4 if thermal else 1.0),
        thermal=thermal,
        haze=domain.haze,
    )


def take_picture(
    camera: Camera,
    person: Person,
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    difficulty: float,
    walked: float = 0.0,
    grain: np.random.Generator | None = None,
) -> np.ndarray:
    """A picture of `person` by `camera`: uint8 `[H, W, 3]`; the three channels of an infrared picture are equal.

    For the frames of a tracklet `rng` is each time the same anew: same pose, place, light and occlusion. `walked` is
    how far, in radians of the gait, the person went since the first frame, which moves the legs and the background;
    `grain` draws the sensor's noise of this frame (None takes `rng`).
    """
    height, width = size
    azimuth = camera.azimuth + rng.normal(0.0, 0.3 + 0.9 * difficulty)
    parts = pose(person, azimuth, rng.uniform(0.0, 2 * np.pi) + walked, rng.uniform(0.1, 0.55))
    frame = _draw_frame(camera, person, rng, size, difficulty)
    materials = warm_materials(person) if camera.thermal else person.materials
    lit, cover = shade(rasterise(parts, frame), materials, "nir" if camera.infrared else "rgb", camera.light)
    scene = _crop(camera.background, rng, size, shift=round(0.06 * size[1] * walked * np.sin(azimuth)))
    scene = scene * (1.0 - _shadow(frame, size, 0.25 if camera.infrared else 0.5)) * (1.0 - cover) + lit
    if rng.random() < 0.7 * difficulty:
        _occlude(scene, rng)
    scene = scene * (camera.cast * np.float32(np.exp(rng.normal(0.0, 0.08 + 0.25 * difficulty))))
    lamp = camera.infrared and not camera.thermal
    scene = scene * (_lamp(rng, size) if lamp else _slope(rng, size, difficulty))
    scene = scene * np.float32(1.0 - camera.haze) + np.float32(0.45 * camera.haze)
    if rng.random() < 0.15 + 0.5 * difficulty:
        scene = _blur(scene)
    image = np.sqrt(np.clip(scene, 0.0, 1.0))  # close to the sRGB curve, and the cheapest power
    image = image + (grain or rng).standard_normal((height, width, scene.shape[2]), np.float32) * np.float32(
        camera.noise
    )
    image = (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image, (height, width, 3)))


def _draw_frame(
    camera: Camera, person: Person, rng: np.random.Generator, size: tuple[int, int], difficulty: float
) -> Frame:
    height, width = size
    jitter = 0.3 + 0.7 * difficulty
    scale = height * camera.fill * person.stature * (1.0 + 0.05 * jitter * rng.uniform(-1, 1))
    x = width * (0.5 + 0.07 * jitter * rng.uniform(-1, 1))
    y = height * (0.965 + 0.025 * jitter * rng.uniform(-1, 1))
    s = SUPERSAMPLE
    return Frame(height * s, width * s, scale * s, (x * s, y * s), camera.pitch)


def _background(rng: np.random.Generator, size: tuple[int, int], channels: int, outdoor: bool) -> np.ndarray:
    """A wall with doors and pillars, or a street with trees and houses, over a floor; seen by this camera's sensor."""
    height, width = round(size[0] * 1.15), round(size[1] * 2)

    def paint(low: float, high: float) -> np.ndarray:
        grey = rng.uniform(low, high)
        return np.full(channels, grey) * (rng.uniform(0.85, 1.15, channels) if channels > 1 else 1.0)

    scene = np.empty((height, width, channels), np.float32)
    horizon = round(height * rng.uniform(0.55, 0.75))
    scene[:horizon] = paint(0.25, 0.6) if outdoor else paint(0.15, 0.45)
    scene[horizon:] = paint(0.12, 0.4)
    for _ in range(rng.integers(3, 7)):
        left, wide = rng.integers(0, width), round(width * rng.uniform(0.05, 0.25))
        top = round(horizon * (rng.uniform(0.1, 0.7) if outdoor else rng.uniform(0.0, 0.25)))
        scene[top : horizon + rng.integers(0, 4), left : left + wide] = paint(0.05, 0.5)
    for _ in range(rng.integers(0, 4)):  # kerbs and floor marks
        top = rng.integers(horizon, height)
        scene[top : top + 2] = paint(0.1, 0.6)
    scene *= np.exp(0.15 * _smooth_noise(rng, height, width, step=10))[..., None]
    scene *= np.linspace(1.15, 0.85, height, dtype=np.float32)[:, None, None]
    for _ in range(3):
        scene = _blur(scene)
    return scene * 0.6 if channels == 1 else scene  # walls stand behind the person, further from the lamp


def _smooth_noise(rng: np.random.Generator, height: int, width: int, *, step: int) -> np.ndarray:
    """Unit normal values on a grid of `step` pixels, interpolated in between `[height, width]`."""
    knots = rng.standard_normal((height // step + 2, width // step + 2), np.float32)
    (row, y), (column, x) = (np.divmod(np.arange(n, dtype=np.float32) / step, 1) for n in (height, width))
    row, column, y = row.astype(int), column.astype(int), y[:, None]
    lines = knots[row] * (1 - y) + knots[row + 1] * y
    return lines[:, column] * (1 - x) + lines[:, column + 1] * x


def _crop(background: np.ndarray, rng: np.random.Generator, size: tuple[int, int], shift: int) -> np.ndarray:
    top = rng.integers(0, background.shape[0] - size[0] + 1)
    room = background.shape[1] - size[1]
    left = min(max(int(rng.integers(0, room + 1)) + shift, 0), room)
    return background[top : top + size[0], left : left + size[1]]


def _grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows `[H, 1]` and columns `[1, W]` of a picture in -1..1."""
    return np.linspace(-1, 1, size[0], dtype=np.float32)[:, None], np.linspace(-1, 1, size[1], dtype=np.float32)[None]


def _shadow(frame: Frame, size: tuple[int, int], strength: float) -> np.ndarray:
    """The dark ellipse under the feet `[H, W, 1]`."""
    y = (np.arange(size[0], dtype=np.float32)[:, None] * SUPERSAMPLE - frame.feet[1]) / (0.04 * frame.scale)
    x = (np.arange(size[1], dtype=np.float32)[None] * SUPERSAMPLE - frame.feet[0]) / (0.17 * frame.scale)
    return (strength * np.exp(-(x * x + y * y)))[..., None].astype(np.float32)


def _lamp(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Fall-off of the lamp's cone and of the lens `[H, W, 1]`."""
    rows, columns = _grid(size)
    y, x = rng.uniform(-0.4, 0.2), rng.uniform(-0.3, 0.3)
    falloff = INFRARED_GAIN / (1.0 + rng.uniform(0.3, 0.7) * ((rows - y) ** 2 + 0.5 * (columns - x) ** 2))
    return falloff[..., None].astype(np.float32)


def _slope(rng: np.random.Generator, size: tuple[int, int], difficulty: float) -> np.ndarray:
    """Daylight that changes across the picture `[H, W, 1]`."""
    rows, columns = _grid(size)
    reach = 0.1 + 0.3 * difficulty
    return (1.0 + rng.uniform(-reach, reach) * rows + rng.uniform(-reach, reach) * columns)[..., None].astype(
        np.float32
    )


def _occlude(scene: np.ndarray, rng: np.random.Generator) -> None:
    """Put a pole, or a table in front of the legs, before the person."""
    height, width, channels = scene.shape
    grey = rng.uniform(0.03, 0.4)
    color = grey * rng.uniform(0.8, 1.2, channels)
    if rng.random() < 0.5:
        left = rng.integers(0, width)
        scene[:, left : left + max(width // 10, 1)] = color
    else:
        scene[round(height * rng.uniform(0.72, 0.92)) :, : round(width * rng.uniform(0.5, 1.0))] = color


def _blur(scene: np.ndarray) -> np.ndarray:
    """One pass of the (1, 2, 1) / 4 filter along rows and columns."""
    padded = np.pad(scene, ((1, 1), (0, 0), (0, 0)), mode="edge")
    scene = 0.25 * (padded[:-2] + padded[2:]) + 0.5 * padded[1:-1]
    padded = np.pad(scene, ((0, 0), (1, 1), (0, 0)), mode="edge")
    return 0.25 * (padded[:, :-2] + padded[:, 2:]) + 0.5 * padded[:, 1:-1]
