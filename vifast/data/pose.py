"""A person posed in a walk and seen from some side: an identity to a list of flat parts.

Lengths are in body heights, `y` up from the ground. The body stands in 3-D, `x` to the right of a front view and `z`
towards its front; it is turned by the viewing angle and projected along the line of sight, so that an identity keeps
its proportions, garments and bags in every picture, and a pattern stays where it is on the cloth.
"""

from typing import NamedTuple

import numpy as np

from vifast.data.people import BAG, HAIR, HAT, LOWER, SHOES, SKIN, SLEEVE, UPPER, Person

SHOULDER, NECK, HEAD, KNEE, ANKLE = 0.815, 0.86, 0.925, 0.285, 0.04
ARM = 0.20  # length of the upper arm; the forearm is as long

Point = tuple[float, float]


class Capsule(NamedTuple):
    """A limb, a tapered stroke between two projected joints; `heights` place its ends on the cloth."""

    depth: float
    material: int
    ends: tuple[Point, Point]
    radii: tuple[float, float]
    heights: tuple[float, float]


class Tube(NamedTuple):
    """An upright part: half-widths about a centre at falling heights; its cloth is wrapped round by `turn`."""

    depth: float
    material: int
    heights: np.ndarray
    widths: np.ndarray
    center: float
    turn: float
    girth: float  # radius that makes a length on the cloth of an angle


Part = Capsule | Tube


def pose(person: Person, azimuth: float, phase: float, stride: float) -> list[Part]:
    """The parts of `person` seen from `azimuth` (0 front, pi back) at `phase` of a walk, the farthest first.

    `stride` is the largest swing of a leg in radians.
    """
    figure = _Figure(person, azimuth)
    figure.add_legs(phase, stride)
    figure.add_trunk()
    wrists = figure.add_arms(phase, stride)
    figure.add_head()
    figure.add_bag(wrists[person.bag_side])
    return sorted(figure.parts, key=lambda part: part.depth)


class _Figure:
    def __init__(self, person: Person, azimuth: float):
        self.person, self.azimuth = person, azimuth
        self.cos, self.sin = float(np.cos(azimuth)), float(np.sin(azimuth))
        self.parts: list[Part] = []

    def project(self, x: float, y: float, z: float) -> Point:
        return x * self.cos + z * self.sin, y

    def depth(self, x: float, z: float) -> float:
        return z * self.cos - x * self.sin

    def width(self, half_width: float, half_depth: float) -> float:
        """Half-width of the picture of an elliptic cylinder."""
        return float(np.hypot(half_width * self.cos, half_depth * self.sin))

    def girdle(self, half_width: float, extra: float = 0.0) -> float:
        """Half-width of the picture of the trunk where it is `half_width` wide."""
        return self.width(half_width, half_width * self.person.depth) + extra

    def limb(self, depth: float, material: int, ends: tuple, radii: tuple, heights: tuple = (0.0, 0.0)) -> None:
        self.parts.append(Capsule(depth, material, ends, radii, heights))

    def tube(self, depth: float, material: int, profile: list[Point], center: float = 0.0) -> None:
        heights, widths = np.array(profile).T
        self.parts.append(Tube(depth, material, heights, widths, center, self.azimuth, girth=0.13))

    def ellipse(self, depth: float, material: int, center: Point, radii: Point) -> None:
        k = np.array([0.995, 0.95, 0.85, 0.65, 0.35, 0.0, -0.35, -0.65, -0.85, -0.95, -0.995])
        profile = np.stack([center[1] + radii[1] * k, radii[0] * np.sqrt(1.0 - k * k)], axis=1)
        self.tube(depth, material, profile, center[0])

    def box(self, depth: float, center: float, span: Point, half_width: float) -> None:
        """A soft-cornered bag that hangs over the heights `span` = (bottom, top)."""
        share = np.array([1.0, 0.95, 0.85, 0.1, 0.03, 0.0])
        shape = np.array([0.6, 0.88, 1.0, 1.0, 0.92, 0.75])
        profile = np.stack([span[0] + (span[1] - span[0]) * share, half_width * shape], axis=1)
        self.tube(depth, BAG, profile, center)

    def add_legs(self, phase: float, stride: float) -> None:
        person = self.person
        radius = 0.043 * person.limb
        thigh, shin = person.hip - KNEE, KNEE - ANKLE
        loose = person.loose if person.lower in ("trousers", "shorts") else 1.0
        for side in (-1, 1):
            swing = stride * np.sin(phase) * side
            bend = stride * (0.35 + 0.65 * max(0.0, -np.cos(phase) * side))
            x = side * person.hips * 0.5
            knee_y, knee_z = person.hip - thigh * np.cos(swing), thigh * np.sin(swing)
            foot_y, foot_z = knee_y - shin * np.cos(swing - bend), knee_z + shin * np.sin(swing - bend)
            hip, knee = self.project(x, person.hip, 0.0), self.project(x, knee_y, knee_z)
            foot, toe = self.project(x, foot_y, foot_z), self.project(x * 1.15, foot_y - 0.022, foot_z + 0.075)
            depth = 0.3 * self.depth(x, knee_z) - 0.06
            upper, lower = (person.hip, KNEE), (KNEE, ANKLE)
            self.limb(depth - 1e-3, SKIN, (knee, foot), (radius, radius * 0.62), lower)
            if person.lower.endswith("skirt"):
                self.limb(depth, SKIN, (hip, knee), (radius * 1.5, radius * 1.05), upper)
            else:
                self.limb(depth, LOWER, (hip, knee), (radius * min(1.5 * loose, 1.9), radius * 1.05 * loose), upper)
            if person.lower == "trousers":
                self.limb(depth, LOWER, (knee, foot), (radius * 1.05 * loose, radius * 0.8 * loose), lower)
            self.limb(depth + 1e-3, SHOES, (foot, toe), (0.026, 0.019))
            if person.boots:
                top = _between(foot, knee, person.boots / shin)
                self.limb(depth + 2e-3, SHOES, (foot, top), (radius * 0.85, radius * 1.1))

    def add_trunk(self) -> None:
        person, girdle = self.person, self.girdle
        hips_y = person.hip - 0.01
        waist_y = 0.5 * (person.hip + SHOULDER) - 0.03
        seat = [(waist_y, girdle(person.waist)), (hips_y, girdle(person.hips))]
        self.tube(-0.02, LOWER, [*seat, (person.hip - 0.06, girdle(person.hips) * 0.9)])
        if person.lower.endswith("skirt"):
            hem = girdle(person.hips) * (1.0 + 0.45 * (person.loose - 0.8))
            self.tube(-0.005, LOWER, [*seat, (person.lower_hem, hem)])
        profile = [
            (SHOULDER + 0.035, girdle(0.04)),
            (SHOULDER + 0.02, girdle(person.shoulder * 0.6)),
            (SHOULDER + 0.002, girdle(person.shoulder * 0.88)),
            (SHOULDER - 0.04, girdle(person.shoulder * 0.96, person.bulk)),
            (waist_y, girdle(person.waist, person.bulk)),
            (hips_y, girdle(person.hips, person.bulk)),
        ]
        if person.hem < hips_y - 0.02:
            profile.append((person.hem, girdle(person.hips * (1.0 + person.flare), person.bulk)))
        self.tube(0.0, UPPER, profile)

    def add_arms(self, phase: float, stride: float) -> dict[int, tuple[Point, float]]:
        """Adds both arms; returns the wrist and its depth of each side (-1, 1)."""
        person, wrists = self.person, {}
        radius = 0.027 * person.limb
        thick = radius * (1.0 + 8.0 * person.bulk)
        elbow_rest, wrist_rest = SHOULDER - ARM, SHOULDER - 2 * ARM
        for side in (-1, 1):
            swing = -0.8 * stride * np.sin(phase) * side
            lift = swing + 0.25 + 0.3 * stride
            x = side * (0.9 * person.shoulder + person.bulk)
            elbow_y, elbow_z = SHOULDER - 0.01 - ARM * np.cos(swing), ARM * np.sin(swing)
            wrist_y, wrist_z = elbow_y - ARM * np.cos(lift), elbow_z + ARM * np.sin(lift)
            shoulder = self.project(x, SHOULDER - 0.01, 0.0)
            elbow, wrist = self.project(x * 1.12, elbow_y, elbow_z), self.project(x * 1.1, wrist_y, wrist_z)
            depth = self.depth(x, elbow_z) + 0.012
            wrists[side] = wrist, depth
            self.limb(depth, SKIN, (shoulder, elbow), (radius * 1.15, radius * 0.9))
            self.limb(depth, SKIN, (elbow, wrist), (radius * 0.9, radius * 0.75))
            if person.sleeve:
                cover = min(2.0 * person.sleeve, 1.0)
                ends = shoulder, _between(shoulder, elbow, cover)
                self.limb(depth + 1e-3, SLEEVE, ends, (thick * 1.25, thick * 1.1), (SHOULDER, SHOULDER - ARM * cover))
            if person.sleeve == 1.0:
                ends = elbow, _between(elbow, wrist, 0.85)
                self.limb(depth + 2e-3, SLEEVE, ends, (thick * 1.1, thick), (elbow_rest, wrist_rest))
        return wrists

    def add_head(self) -> None:
        person, r = self.person, self.person.head
        front = r * self.sin
        self.limb(0.004, SKIN, ((0.0, NECK - 0.03), (0.0, NECK + 0.03)), (0.034, 0.03))
        self.ellipse(0.02, SKIN if person.hair == "bald" else HAIR, (0.0, HEAD + 0.006), (r * 1.04, r * 1.22))
        if self.cos > -0.35:  # the face turns away with the body
            share = 0.55 + 0.35 * max(self.cos, 0.0)
            self.ellipse(0.022, SKIN, (0.42 * front, HEAD - 0.012), (r * share, r * 1.02))
        if person.hair == "long":
            fall = [(HEAD + 0.01, r * 1.05), (HEAD - 0.07, r * 1.2), (SHOULDER - 0.07, r * 1.1)]
            self.tube(-0.05 * self.cos + 1e-3, HAIR, fall, -0.02 * self.sin)
        elif person.hair == "tail":
            ends = (-front, HEAD + 0.02), (-1.5 * front, HEAD - 0.1)
            self.limb(-0.06 * self.cos, HAIR, ends, (0.018, 0.014))
        if person.hat == "hood":
            self.tube(0.012, SLEEVE, [(HEAD - 0.02, r * 1.2), (SHOULDER + 0.02, r * 1.7)])
            self.ellipse(0.021, SLEEVE, (-0.01 * self.sin, HEAD), (r * 1.3, r * 1.42))
        elif person.hat != "none":
            rise = {"cap": 0.9, "beanie": 1.35, "brim": 1.2}[person.hat] * r
            k = np.array([0.98, 0.85, 0.6, 0.3, 0.0, -0.3])
            self.tube(0.03, HAT, np.stack([HEAD + 0.03 + rise * k, r * 1.14 * np.sqrt(1.0 - k * k)], axis=1))
        if person.hat == "cap":
            ends = (0.8 * front, HEAD + 0.022), (2.1 * front, HEAD + 0.016)
            self.limb(0.031 if self.cos > -0.2 else 0.0, HAT, ends, (r * 0.75, r * 0.3))
        elif person.hat == "brim":
            self.limb(0.031, HAT, ((-2.0 * r, HEAD + 0.022), (2.0 * r, HEAD + 0.022)), (0.012, 0.012))

    def add_bag(self, hand: tuple[Point, float]) -> None:
        person, side = self.person, self.person.bag_side
        wrist, depth = hand
        match person.bag:
            case "backpack":
                z = -(person.shoulder * person.depth + 0.05)
                self.box(self.depth(0.0, z), z * self.sin, (0.585, 0.835), self.width(0.105, 0.06))
                for strap in (-1, 1) if self.cos > -0.1 else ():
                    x = 0.62 * strap * person.shoulder
                    ends = self.project(x, SHOULDER + 0.01, 0.03), self.project(x, 0.62, 0.05)
                    self.limb(0.006, BAG, ends, (0.013, 0.013))
            case "shoulder":
                x, _ = self.project(side * (person.hips + 0.03), 0.0, 0.0)
                ends = (-0.6 * side * person.shoulder * self.cos, SHOULDER + 0.015), (x, 0.57)
                self.limb(0.007, BAG, ends, (0.011, 0.011))
                self.box(self.depth(side * person.hips, 0.0) + 0.03, x, (0.42, 0.575), self.width(0.05, 0.09))
            case "hand":
                self.box(depth + 0.02, wrist[0], (wrist[1] - 0.16, wrist[1] - 0.005), self.width(0.045, 0.085))
            case "case":
                x, _ = self.project(0.2 * side, 0.0, -0.08)
                self.limb(depth, BAG, (wrist, (x, 0.3)), (0.008, 0.008))
                self.box(depth + 0.02, x, (0.02, 0.3), self.width(0.07, 0.1))


def _between(a: Point, b: Point, share: float) -> Point:
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share
