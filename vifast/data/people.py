"""Procedural people: an identity is drawn once, then posed and seen from any side as a list of simple parts.

Lengths are in body heights, `y` up from the ground. A body stands in 3-D (`x` to its left hand's side in the picture of
a front view, `z` forward); `pose` turns it by the viewing angle and projects it, so that one identity keeps its
proportions, garments and bags in every picture. Garments carry their own visible colour and near-infrared reflectance,
drawn independently of each other: what both modalities share is geometry.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SKIN, HAIR, UPPER, SLEEVE, LOWER, SHOES, BAG, HAT, NUM_MATERIALS = range(
    1, 10
)  # 0 is what lies behind the person

SHOULDER, NECK, HEAD, KNEE, ANKLE = 0.815, 0.86, 0.925, 0.285, 0.04
ARM = 0.20  # length of the upper arm; the forearm is as long

PATTERNS = (
    "plain",
    "rings",
    "stripes",
    "checks",
    "plaid",
    "dots",
    "diagonal",
    "yoke",
    "band",
    "panel",
    "print",
)


class Pattern(NamedTuple):
    """Where the second colour of a cloth lies. `period` and `level` are lengths on the body, `duty` a share."""

    kind: str = "plain"
    period: float = 0.1
    duty: float = 0.5
    level: float = 0.7


@dataclass(frozen=True)
class Cloth:
    """Ground and pattern reflectance (0..1, linear): `rgb [2, 3]` to visible light, `nir [2]` to the infrared lamp."""

    rgb: np.ndarray
    nir: np.ndarray
    pattern: Pattern = Pattern()


@dataclass(frozen=True)
class Person:
    """One identity. Half-widths and radii in body heights."""

    stature: float
    hip: float
    shoulder: float
    waist: float
    hips: float
    depth: float  # front-to-back thickness of the trunk as a share of its width
    limb: float
    head: float
    sleeve: float  # share of the arm that is covered
    hem: float  # height at which the upper garment ends
    flare: float  # widening from hip to hem
    bulk: float  # thickness the upper garment adds
    lower: str
    lower_hem: float
    loose: float
    boots: float
    hair: str
    hat: str
    bag: str
    bag_side: int
    materials: dict[int, Cloth]


class Capsule(NamedTuple):
    """A limb: a tapered stroke between two projected joints. `heights` are the garment heights of its ends."""

    depth: float
    material: int
    ends: tuple[tuple[float, float], tuple[float, float]]
    radii: tuple[float, float]
    heights: tuple[float, float]


class Tube(NamedTuple):
    """A trunk-like part: half-widths about a centre line over falling heights, its texture wrapped round by `turn`."""

    depth: float
    material: int
    heights: np.ndarray
    centers: np.ndarray
    widths: np.ndarray
    turn: float
    girth: float  # radius that turns an angle of the texture into a length


Part = Capsule | Tube


def draw_person(rng: np.random.Generator, difficulty: float) -> Person:
    """Draw an identity. With rising `difficulty` bodies and clothes become more alike and prints fade in infrared."""
    spread = 1.0 - 0.5 * difficulty
    upper = _choose(rng, {"shirt": 3, "long": 3, "vest": 1, "jacket": 3, "coat": 3, "dress": 2})
    lower = _choose(rng, {"trousers": 5, "shorts": 2, "skirt": 2, "long_skirt": 1})
    hem = {"shirt": 0.47, "long": 0.46, "vest": 0.5, "jacket": 0.45, "coat": 0.3, "dress": 0.32}[upper]
    sleeve = {"shirt": 0.42, "vest": 0.0, "dress": float(rng.choice([0.0, 0.4]))}.get(upper, 1.0)
    return Person(
        stature=_around(rng, 0.95, 0.05, spread),
        hip=_around(rng, 0.51, 0.03, spread),
        shoulder=_around(rng, 0.128, 0.024, spread),
        waist=_around(rng, 0.098, 0.026, spread),
        hips=_around(rng, 0.108, 0.020, spread),
        depth=_around(rng, 0.68, 0.1, spread),
        limb=_around(rng, 1.0, 0.28, spread),
        head=_around(rng, 0.060, 0.006, spread),
        sleeve=sleeve,
        hem=hem + rng.uniform(-0.03, 0.03),
        flare=rng.uniform(0.25, 0.6) if upper == "dress" else rng.uniform(0.0, 0.2),
        bulk={"jacket": 0.016, "coat": 0.014}.get(upper, 0.004) + rng.uniform(0.0, 0.008),
        lower=lower,
        lower_hem={"shorts": 0.31, "skirt": 0.32, "long_skirt": 0.12}.get(lower, ANKLE)
        + rng.uniform(-0.02, 0.04),
        loose=rng.uniform(0.95, 1.6),
        boots=float(rng.choice([0.0, 0.0, 0.0, 0.1, 0.2])),
        hair=_choose(rng, {"bald": 1, "short": 4, "long": 4, "tail": 2}),
        hat=_choose(rng, {"none": 6, "cap": 2, "beanie": 2, "brim": 1, "hood": 2}),
        bag=_choose(rng, {"none": 3, "backpack": 3, "shoulder": 3, "hand": 2, "case": 1}),
        bag_side=int(rng.choice([-1, 1])),
        materials=_draw_materials(rng, difficulty),
    )


def pose(person: Person, azimuth: float, phase: float, stride: float) -> list[Part]:
    """The parts of `person` seen from `azimuth` (0 front, pi back) at `phase` of a walk, far parts first."""
    view = _View(np.cos(azimuth), np.sin(azimuth), azimuth)
    parts = [
        *_legs(person, view, phase, stride),
        *_trunk(person, view),
        *_arms(person, view, phase, stride),
        *_head(person, view),
        *_bag(person, view, phase, stride),
    ]
    return sorted(parts, key=lambda part: part.depth)


class _View(NamedTuple):
    cos: float
    sin: float
    azimuth: float

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        return x * self.cos + z * self.sin, y

    def depth(self, x: float, z: float) -> float:
        return z * self.cos - x * self.sin

    def width(self, half_width: float, half_depth: float) -> float:
        """Half-width of the picture of an elliptic cylinder."""
        return float(np.hypot(half_width * self.cos, half_depth * self.sin))


def _choose(rng: np.random.Generator, weights: dict[str, int]) -> str:
    share = np.array(list(weights.values()), dtype=float)
    return str(rng.choice(list(weights), p=share / share.sum()))


def _around(rng: np.random.Generator, center: float, reach: float, spread: float) -> float:
    return float(center + spread * rng.uniform(-reach, reach))


def _draw_materials(rng: np.random.Generator, difficulty: float) -> dict[int, Cloth]:
    tone = rng.uniform(0.0, 1.0)
    skin = (1 - tone) * np.array([0.72, 0.48, 0.36]) + tone * np.array([0.16, 0.08, 0.05])
    hair = np.array([[0.02, 0.015, 0.012], [0.07, 0.035, 0.02], [0.35, 0.23, 0.09], [0.4, 0.4, 0.4]])[
        rng.choice(4, p=[0.5, 0.3, 0.12, 0.08])
    ]
    upper = _draw_cloth(rng, difficulty, _choose(rng, {"plain": 1} | dict.fromkeys(PATTERNS[1:], 1)))
    # A sleeve is cut from the cloth of the trunk, or set off against it (raglan).
    sleeve = upper if rng.random() < 0.7 else _draw_cloth(rng, difficulty, "plain")
    lower = _choose(rng, {"plain": 5, "stripes": 1, "checks": 1, "rings": 1, "plaid": 1, "yoke": 1})
    return {
        # Skin of every tone reflects near infrared alike; melanin absorbs little of it.
        SKIN: Cloth(np.stack([skin, skin]), np.full(2, rng.uniform(0.5, 0.62))),
        HAIR: Cloth(np.stack([hair, hair]), np.full(2, rng.uniform(0.08, 0.4))),
        UPPER: upper,
        SLEEVE: sleeve,
        LOWER: _draw_cloth(rng, difficulty, lower),
        SHOES: _draw_cloth(rng, difficulty, "plain"),
        BAG: _draw_cloth(rng, difficulty, _choose(rng, {"plain": 3, "yoke": 1, "band": 1})),
        HAT: _draw_cloth(rng, difficulty, _choose(rng, {"plain": 3, "rings": 1})),
    }


def _draw_cloth(rng: np.random.Generator, difficulty: float, kind: str) -> Cloth:
    first = _draw_dye(rng)
    second = max((_draw_dye(rng) for _ in range(3)), key=lambda dye: float(np.abs(dye - first).sum()))
    # Cotton and most dyes are bright in near infrared, carbon black and leather dark, whatever their colour.
    nir = rng.uniform(0.06, 0.85)
    contrast = rng.uniform(0.3, 0.6) * (0.15 if rng.random() < 0.6 * difficulty else 1.0)
    other = nir + contrast if nir < 0.45 else nir - contrast
    pattern = Pattern(
        kind,
        period=float(rng.choice([0.07, 0.1, 0.14])),
        duty=rng.uniform(0.35, 0.6),
        level=rng.uniform(0.62, 0.72),
    )
    return Cloth(np.stack([first, second]), np.clip([nir, other], 0.03, 0.95), pattern)


def _draw_dye(rng: np.random.Generator) -> np.ndarray:
    """Linear RGB of a dyed fabric: greys and blues are common, saturated colours less so."""
    value = rng.uniform(0.12, 0.95) ** 2.2
    if rng.random() < 0.35:
        return np.full(3, max(value, 0.015)) * rng.uniform(0.92, 1.0, 3)
    hue = rng.uniform(0.0, 6.0)
    saturation = rng.uniform(0.3, 0.9)
    wheel = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6.0 - 3.0) - 1.0, 0.0, 1.0)
    return np.maximum(value, 0.05) * (1.0 - saturation + saturation * wheel)


def _legs(person: Person, view: _View, phase: float, stride: float) -> list[Part]:
    parts: list[Part] = []
    covered = person.lower in ("trousers", "shorts")
    radius = 0.040 * person.limb
    for side in (-1, 1):
        swing = stride * np.sin(phase) * side
        bend = stride * (0.35 + 0.65 * max(0.0, -np.cos(phase) * side))
        x = side * person.hips * 0.5
        thigh, shin = person.hip - KNEE, KNEE - ANKLE
        knee_y, knee_z = person.hip - thigh * np.cos(swing), thigh * np.sin(swing)
        foot_y, foot_z = knee_y - shin * np.cos(swing - bend), knee_z + shin * np.sin(swing - bend)
        hip, knee, foot = (
            view.project(x, person.hip, 0),
            view.project(x, knee_y, knee_z),
            view.project(x, foot_y, foot_z),
        )
        toe = view.project(x * 1.15, foot_y - 0.022, foot_z + 0.075)
        depth = 0.3 * view.depth(x, knee_z) - 0.06
        leg = LOWER if covered else SKIN
        wide = person.loose if covered else 1.0
        parts.append(
            Capsule(
                depth,
                leg,
                (hip, knee),
                (radius * 1.5 * min(wide, 1.25), radius * 1.05 * wide),
                (person.hip, KNEE),
            )
        )
        parts.append(Capsule(depth - 1e-3, SKIN, (knee, foot), (radius, radius * 0.62), (KNEE, ANKLE)))
        if person.lower == "trousers":
            parts.append(
                Capsule(
                    depth, LOWER, (knee, foot), (radius * 1.05 * wide, radius * 0.8 * wide), (KNEE, ANKLE)
                )
            )
        elif person.lower == "shorts":
            end = _between(hip, knee, 1.04)
            parts.append(
                Capsule(
                    depth + 1e-4,
                    LOWER,
                    (_between(hip, knee, 0.5), end),
                    (radius * 1.5, radius * 1.3 * wide),
                    (0.4, KNEE),
                )
            )
        parts.append(Capsule(depth + 1e-3, SHOES, (foot, toe), (0.026, 0.019), (ANKLE, 0.0)))
        if person.boots:
            top = _between(foot, knee, person.boots / shin)
            parts.append(
                Capsule(
                    depth + 2e-3, SHOES, (foot, top), (radius * 0.85, radius * 1.1), (ANKLE, person.boots)
                )
            )
    return parts


def _trunk(person: Person, view: _View) -> list[Part]:
    def width(half_width: float, extra: float = 0.0) -> float:
        return view.width(half_width, half_width * person.depth) + extra

    parts: list[Part] = []
    waist_y = 0.5 * (person.hip + SHOULDER) - 0.03
    hips_y = person.hip - 0.01
    parts.append(
        _tube(
            -0.02,
            LOWER,
            [
                (waist_y, width(person.waist)),
                (hips_y, width(person.hips)),
                (person.hip - 0.06, width(person.hips) * 0.9),
            ],
            view,
        )
    )
    if person.lower.endswith("skirt"):
        hem = width(person.hips) * (1.0 + 0.45 * (person.loose - 0.8))
        parts.append(
            _tube(
                -0.005,
                LOWER,
                [(waist_y, width(person.waist)), (hips_y, width(person.hips)), (person.lower_hem, hem)],
                view,
            )
        )
    profile = [
        (SHOULDER + 0.035, width(0.04)),
        (SHOULDER + 0.012, width(person.shoulder * 0.86)),
        (SHOULDER - 0.03, width(person.shoulder, person.bulk)),
        (waist_y, width(person.waist, person.bulk)),
        (hips_y, width(person.hips, person.bulk)),
    ]
    if person.hem < hips_y - 0.02:
        profile.append((person.hem, width(person.hips * (1 + person.flare), person.bulk)))
    parts.append(_tube(0.0, UPPER, profile, view))
    return parts


def _arms(person: Person, view: _View, phase: float, stride: float) -> list[Part]:
    parts: list[Part] = []
    radius = 0.027 * person.limb
    for side in (-1, 1):
        shoulder, elbow, wrist, depth = _arm_joints(person, view, phase, stride, side)
        cover = min(person.sleeve * 2, 1.0)
        wide = 1.0 + 14 * person.bulk
        rest = SHOULDER - ARM
        parts.append(Capsule(depth, SKIN, (shoulder, elbow), (radius * 1.15, radius * 0.9), (SHOULDER, rest)))
        parts.append(Capsule(depth, SKIN, (elbow, wrist), (radius * 0.9, radius * 0.75), (rest, rest - ARM)))
        if person.sleeve:
            end = _between(shoulder, elbow, cover)
            parts.append(
                Capsule(
                    depth + 1e-3,
                    SLEEVE,
                    (shoulder, end),
                    (radius * 1.25 * wide, radius * 1.1 * wide),
                    (SHOULDER, SHOULDER - ARM * cover),
                )
            )
        if person.sleeve == 1.0:
            end = _between(elbow, wrist, 0.85)
            parts.append(
                Capsule(
                    depth + 2e-3,
                    SLEEVE,
                    (elbow, end),
                    (radius * 1.1 * wide, radius * wide),
                    (rest, rest - ARM),
                )
            )
    return parts


def _arm_joints(person: Person, view: _View, phase: float, stride: float, side: int):
    swing = -0.8 * stride * np.sin(phase) * side
    x = side * (person.shoulder - 0.008 + person.bulk)
    elbow_y, elbow_z = SHOULDER - 0.01 - ARM * np.cos(swing), ARM * np.sin(swing)
    lift = swing + 0.25 + 0.3 * stride
    wrist_y, wrist_z = elbow_y - ARM * np.cos(lift), elbow_z + ARM * np.sin(lift)
    joints = (
        view.project(x, SHOULDER - 0.01, 0),
        view.project(x * 1.12, elbow_y, elbow_z),
        view.project(x * 1.1, wrist_y, wrist_z),
    )
    return *joints, view.depth(x, elbow_z) + 0.012


def _head(person: Person, view: _View) -> list[Part]:
    r = person.head
    parts: list[Part] = [
        Capsule(0.004, SKIN, ((0.0, NECK - 0.03), (0.0, NECK + 0.03)), (0.034, 0.03), (NECK, NECK))
    ]
    cover = {"bald": SKIN}.get(person.hair, HAIR)
    parts.append(_ellipse(0.02, cover, 0.0, HEAD + 0.006, r * 1.04, r * 1.22, view))
    facing = view.cos
    if facing > -0.35:  # the face turns away with the body
        share = 0.55 + 0.35 * max(facing, 0.0)
        parts.append(_ellipse(0.022, SKIN, r * 0.42 * view.sin, HEAD - 0.012, r * share, r * 1.02, view))
    if person.hair == "long":
        fall = [(HEAD + 0.01, r * 1.05), (HEAD - 0.07, r * 1.2), (SHOULDER - 0.07, r * 1.1)]
        parts.append(_tube(-0.05 * facing + 1e-3, HAIR, fall, view, -0.02 * view.sin))
    elif person.hair == "tail":
        end = (-1.5 * r * view.sin, HEAD - 0.1)
        parts.append(
            Capsule(-0.06 * facing, HAIR, ((-r * view.sin, HEAD + 0.02), end), (0.018, 0.014), (0, 0))
        )
    front = r * view.sin
    if person.hat in ("cap", "beanie", "brim"):
        tall = {"cap": 0.9, "beanie": 1.35, "brim": 1.2}[person.hat] * r
        dome = [
            (HEAD + 0.03 + tall * k, r * 1.14 * np.sqrt(1 - k * k)) for k in (0.98, 0.85, 0.6, 0.3, 0.0, -0.3)
        ]
        parts.append(_tube(0.03, HAT, dome, view))
        if person.hat == "cap":
            tip = (2.1 * front, HEAD + 0.016)
            parts.append(
                Capsule(
                    0.031 if facing > -0.2 else 0.0,
                    HAT,
                    ((0.8 * front, HEAD + 0.022), tip),
                    (r * 0.75, r * 0.3),
                    (0, 0),
                )
            )
        if person.hat == "brim":
            parts.append(
                Capsule(
                    0.031, HAT, ((-2.0 * r, HEAD + 0.022), (2.0 * r, HEAD + 0.022)), (0.012, 0.012), (0, 0)
                )
            )
    elif person.hat == "hood":
        parts.append(_ellipse(0.021, SLEEVE, -0.01 * view.sin, HEAD, r * 1.3, r * 1.42, view))
        parts.append(_tube(0.012, SLEEVE, [(HEAD - 0.02, r * 1.2), (SHOULDER + 0.02, r * 1.7)], view))
    return parts


def _bag(person: Person, view: _View, phase: float, stride: float) -> list[Part]:
    side = person.bag_side
    behind = -(person.shoulder * person.depth + 0.05)
    if person.bag == "backpack":
        x, depth = behind * view.sin, view.depth(0, behind)
        wide = view.width(0.105, 0.06)
        parts: list[Part] = [_box(depth, x, 0.585, 0.835, wide, view)]
        for strap in (-1, 1) if view.cos > -0.1 else ():
            turn = strap * person.shoulder * 0.62
            top, end = view.project(turn, SHOULDER + 0.01, 0.03), view.project(turn, 0.62, 0.05)
            parts.append(Capsule(0.006, BAG, (top, end), (0.013, 0.013), (0, 0)))
        return parts
    if person.bag == "shoulder":
        x, _ = view.project(side * (person.hips + 0.03), 0, 0)
        depth = view.depth(side * person.hips, 0) + 0.03
        strap = ((-0.6 * side * person.shoulder * view.cos, SHOULDER + 0.015), (x, 0.57))
        return [
            Capsule(0.007, BAG, strap, (0.011, 0.011), (0, 0)),
            _box(depth, x, 0.42, 0.575, view.width(0.05, 0.09), view),
        ]
    if person.bag == "hand":
        *_, wrist, depth = _arm_joints(person, view, phase, stride, side)
        return [
            _box(depth + 0.02, wrist[0], wrist[1] - 0.16, wrist[1] - 0.005, view.width(0.045, 0.085), view)
        ]
    if person.bag == "case":
        x, _ = view.project(side * 0.2, 0, -0.08)
        *_, wrist, depth = _arm_joints(person, view, phase, stride, side)
        return [
            Capsule(depth, BAG, (wrist, (x, 0.3)), (0.008, 0.008), (0, 0)),
            _box(depth + 0.02, x, 0.02, 0.3, view.width(0.07, 0.1), view),
        ]
    return []


def _tube(
    depth: float, material: int, profile: list[tuple[float, float]], view: _View, center: float = 0.0
) -> Tube:
    heights, widths = np.array(profile, dtype=np.float64).T
    return Tube(depth, material, heights, np.full(len(heights), center), widths, view.azimuth, 0.13)


def _ellipse(
    depth: float, material: int, x: float, y: float, half_width: float, half_height: float, view: _View
) -> Tube:
    k = np.array([0.995, 0.95, 0.85, 0.65, 0.35, 0.0, -0.35, -0.65, -0.85, -0.95, -0.995])
    widths = half_width * np.sqrt(1.0 - k * k)
    return Tube(depth, material, y + half_height * k, np.full(len(k), x), widths, view.azimuth, half_width)


def _box(depth: float, x: float, bottom: float, top: float, half_width: float, view: _View) -> Tube:
    """A soft-cornered box hanging from `top` to `bottom`."""
    rise = top - bottom
    share = np.array([1.0, 0.95, 0.85, 0.1, 0.03, 0.0])
    shape = np.array([0.6, 0.88, 1.0, 1.0, 0.92, 0.75])
    return Tube(depth, BAG, bottom + rise * share, np.full(6, x), half_width * shape, view.azimuth, 0.1)


def _between(a: tuple[float, float], b: tuple[float, float], share: float) -> tuple[float, float]:
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share
