"""Procedural people: an identity as body measures, garments and the reflectance of everything it wears.

Garments carry their own visible colour and near-infrared reflectance, drawn independently of each other: what the two
modalities share is geometry. Lengths are in body heights.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

SKIN, HAIR, UPPER, SLEEVE, LOWER, SHOES, BAG, HAT, NUM_MATERIALS = range(1, 10)  # 0 is what lies behind the person

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

# What people wear by season, with its weights.
_UPPER = {
    "all": {"shirt": 3, "long": 3, "vest": 1, "jacket": 3, "coat": 3, "dress": 2},
    "summer": {"shirt": 5, "long": 1, "vest": 3, "dress": 3},
    "winter": {"long": 1, "jacket": 4, "coat": 5},
}
_LOWER = {
    "all": {"trousers": 5, "shorts": 2, "skirt": 2, "long_skirt": 1},
    "summer": {"trousers": 2, "shorts": 5, "skirt": 3},
    "winter": {"trousers": 8, "long_skirt": 1},
}
_HAT = {
    "all": {"none": 6, "cap": 2, "beanie": 2, "brim": 1, "hood": 2},
    "summer": {"none": 6, "cap": 3, "brim": 2},
    "winter": {"none": 3, "beanie": 4, "hood": 4},
}

# How warm materials look to a thermal camera, in the units of reflectance.
_WARMTH = {SKIN: 0.8, HAIR: 0.45, UPPER: 0.5, SLEEVE: 0.45, LOWER: 0.42, SHOES: 0.25, BAG: 0.12, HAT: 0.2}


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
    pattern: Pattern = field(default_factory=Pattern)


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


def draw_person(rng: np.random.Generator, difficulty: float, season: str = "all") -> Person:
    """Draw an identity. With rising `difficulty` bodies and clothes become more alike and prints fade in infrared."""
    spread = 1.0 - 0.5 * difficulty
    upper = _choose(rng, _UPPER[season])
    lower = _choose(rng, _LOWER[season])
    hem = {"shirt": 0.47, "long": 0.46, "vest": 0.5, "jacket": 0.45, "coat": 0.3, "dress": 0.32}[upper]
    sleeve = {"shirt": 0.42, "vest": 0.0, "dress": float(rng.choice([0.0, 0.4]))}.get(upper, 1.0)
    return Person(
        stature=_around(rng, 0.95, 0.05, spread),
        hip=_around(rng, 0.51, 0.03, spread),
        shoulder=_around(rng, 0.122, 0.024, spread),
        waist=_around(rng, 0.098, 0.026, spread),
        hips=_around(rng, 0.108, 0.020, spread),
        depth=_around(rng, 0.68, 0.1, spread),
        limb=_around(rng, 1.0, 0.28, spread),
        head=_around(rng, 0.063, 0.006, spread),
        sleeve=sleeve,
        hem=hem + rng.uniform(-0.03, 0.03),
        flare=rng.uniform(0.25, 0.6) if upper == "dress" else rng.uniform(0.0, 0.2),
        bulk={"jacket": 0.016, "coat": 0.014}.get(upper, 0.004) + rng.uniform(0.0, 0.008),
        lower=lower,
        lower_hem={"shorts": 0.31, "skirt": 0.32, "long_skirt": 0.12}.get(lower, 0.0) + rng.uniform(-0.02, 0.04),
        loose=rng.uniform(0.95, 1.6),
        boots=float(rng.choice([0.0, 0.0, 0.0, 0.1, 0.2])),
        hair=_choose(rng, {"bald": 1, "short": 4, "long": 4, "tail": 2}),
        hat=_choose(rng, _HAT[season]),
        bag=_choose(rng, {"none": 3, "backpack": 3, "shoulder": 3, "hand": 2, "case": 1}),
        bag_side=int(rng.choice([-1, 1])),
        materials=_draw_materials(rng, difficulty),
    )


def warm_materials(person: Person) -> dict[int, Cloth]:
    """What a thermal camera sees of a person, in place of `nir`: bare skin is warmest, thick clothes keep warmth in.

    Of the differences among cloths, and of a print to its ground, a share is left.
    """

    def warmth(material: int, cloth: Cloth) -> np.ndarray:
        thick = 8 * person.bulk if material in (UPPER, SLEEVE) else 0.0
        return _WARMTH[material] - thick + (0.0 if material == SKIN else 0.3) * (cloth.nir - 0.4)

    return {m: replace(cloth, nir=warmth(m, cloth)) for m, cloth in person.materials.items()}


def _choose(rng: np.random.Generator, weights: dict[str, int]) -> str:
    share = np.array(list(weights.values()), dtype=float)
    return str(rng.choice(list(weights), p=share / share.sum()))


def _around(rng: np.random.Generator, center: float, reach: float, spread: float) -> float:
    return float(center + spread * rng.uniform(-reach, reach))


def _draw_materials(rng: np.random.Generator, difficulty: float) -> dict[int, Cloth]:
    tone = rng.uniform(0.0, 1.0)
    skin = (1 - tone) * np.array([0.72, 0.48, 0.36]) + tone * np.array([0.16, 0.08, 0.05])
    # Skin of every tone reflects near infrared alike: melanin absorbs little of it.
    materials = {SKIN: _plain(skin, rng.uniform(0.42, 0.52)), HAIR: _plain(_draw_hair(rng), rng.uniform(0.06, 0.3))}
    upper = _choose(rng, {"plain": 1} | dict.fromkeys(PATTERNS[1:], 2))
    lower = _choose(rng, {"plain": 6, "stripes": 2, "checks": 2, "rings": 2, "plaid": 1, "yoke": 1})

    def dress(material: int, kind: str, *beside: int) -> None:
        materials[material] = _draw_cloth(rng, difficulty, kind, [materials[other] for other in beside])

    dress(UPPER, upper, SKIN)
    dress(SLEEVE, "plain", UPPER)
    if rng.random() < 0.7:  # cut from the cloth of the trunk; else set off against it
        materials[SLEEVE] = materials[UPPER]
    dress(LOWER, lower, UPPER)
    dress(SHOES, "plain", LOWER)
    dress(BAG, _choose(rng, {"plain": 3, "yoke": 1, "band": 1}), UPPER, LOWER)
    dress(HAT, _choose(rng, {"plain": 3, "rings": 1}), HAIR)
    return materials


def _draw_cloth(rng: np.random.Generator, difficulty: float, kind: str, beside: list[Cloth]) -> Cloth:
    """A cloth whose ground stands out from the cloths `beside` it, and its pattern from its ground, in each spectrum.

    Of a few draws the most distinct is taken; the fewer, the more difficult. Dye and infrared reflectance are drawn
    apart: cotton and most dyes are bright in near infrared, carbon black and leather dark, whatever their colour.
    """
    draws = 1 + round(5 * (1.0 - difficulty))
    dye = _most_distinct([_draw_dye(rng) for _ in range(draws)], [cloth.rgb[0] for cloth in beside])
    other_dye = _most_distinct([_draw_dye(rng) for _ in range(draws)], [dye])
    nir = _most_distinct(rng.uniform(0.05, 0.75, draws).tolist(), [cloth.nir[0] for cloth in beside])
    other_nir = _most_distinct(rng.uniform(0.05, 0.75, draws).tolist(), [nir])
    if rng.random() < 0.8 * difficulty**2:  # a print that infrared hardly shows
        other_nir = 0.85 * nir + 0.15 * other_nir
    pattern = Pattern(
        kind,
        period=float(rng.choice([0.08, 0.12, 0.17])),
        duty=rng.uniform(0.35, 0.6),
        level=rng.uniform(0.62, 0.72),
    )
    return Cloth(np.stack([dye, other_dye]), np.array([nir, other_nir]), pattern)


def _plain(rgb: np.ndarray, nir: float) -> Cloth:
    return Cloth(np.stack([rgb, rgb]), np.full(2, nir))


def _most_distinct(candidates: list, others: list):
    """The candidate whose brightness, as displayed, is farthest from the nearest of `others`."""

    def brightness(reflectance) -> float:
        return float(np.sqrt(np.mean(reflectance)))

    return max(candidates, key=lambda c: min(abs(brightness(c) - brightness(other)) for other in others))


def _draw_hair(rng: np.random.Generator) -> np.ndarray:
    colors = {
        "black": (0.02, 0.015, 0.012),
        "brown": (0.07, 0.035, 0.02),
        "fair": (0.35, 0.23, 0.09),
        "grey": (0.4, 0.4, 0.4),
    }
    return np.array(colors[_choose(rng, {"black": 6, "brown": 4, "fair": 1, "grey": 1})])


def _draw_dye(rng: np.random.Generator) -> np.ndarray:
    """Linear RGB of a dyed fabric, a third of them grey."""
    value = rng.uniform(0.12, 0.95) ** 2.2
    if rng.random() < 0.35:
        return np.full(3, max(value, 0.015)) * rng.uniform(0.92, 1.0, 3)
    hue = rng.uniform(0.0, 6.0)
    saturation = rng.uniform(0.3, 0.9)
    wheel = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6.0 - 3.0) - 1.0, 0.0, 1.0)
    return np.maximum(value, 0.05) * (1.0 - saturation + saturation * wheel)
