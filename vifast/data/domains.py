"""Domains of synthetic datasets: how one place differs from another, as the four real datasets do.

People of one domain are dressed for its season; its cameras have its light, height and sensors. A model that was
trained in one and then in another meets another distribution, which is what lifelong learning is about.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """What the people and cameras of a dataset have in common.

    Attributes:
        season: of the clothes: `"summer"`, `"winter"`, or `"all"` at once.
        thermal: infrared cameras see warmth, not a lamp's reflection.
        light: red, green and blue of the visible light, 1 for daylight.
        lamp: strength of the infrared lamp, or of the thermal sensor.
        haze: share of grey veil over every picture.
        noise: factor of the sensors' noise.
        pitch: how much higher than usual the cameras hang; body heights that one at half height gains.
        size: height and width of the pictures, relative to those asked for.
    """

    season: str = "all"
    thermal: bool = False
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)
    lamp: float = 1.0
    haze: float = 0.0
    noise: float = 1.0
    pitch: float = 0.0
    size: tuple[float, float] = (1.0, 1.0)


#: `"plain"`, and one in the manner of each dataset.
DOMAINS = {
    "plain": Domain(),
    # A street by day in autumn: small pictures of a thermal camera beside a hazy visible one.
    "regdb": Domain(thermal=True, light=(1.05, 1.0, 0.95), haze=0.15, size=(0.75, 0.75)),
    # A campus in summer: bright and clear.
    "sysu": Domain(season="summer", light=(1.15, 1.1, 1.05)),
    # Low light: dim yellow lamps, noisy sensors, a weak infrared lamp.
    "llcm": Domain(light=(0.42, 0.33, 0.2), lamp=0.55, noise=2.5, size=(0.875, 0.875)),
    # Winter, seen from high poles in cold light.
    "vcm": Domain(
        season="winter", light=(0.7, 0.85, 1.1), lamp=1.35, haze=0.3, noise=1.4, pitch=0.3, size=(1.125, 1.125)
    ),
}
