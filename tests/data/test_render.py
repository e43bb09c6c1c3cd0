import dataclasses

import numpy as np
import pytest

from vifast.data.people import LOWER, NUM_MATERIALS, PATTERNS, SKIN, UPPER, Cloth, Pattern, draw_person, warm_materials
from vifast.data.pose import Capsule, Tube, pose
from vifast.data.render import Frame, pattern_share, rasterise, shade
from vifast.data.scene import draw_camera, take_picture

SIZE = (64, 32)
FRAME = Frame(height=128, width=64, scale=110.0, feet=(32.0, 124.0), pitch=0.0)


def people(count, difficulty=0.2):
    return [draw_person(np.random.default_rng([0, i]), difficulty) for i in range(count)]


def camera(infrared):
    return draw_camera(np.random.default_rng(1), infrared=infrared, outdoor=False, size=SIZE, difficulty=0.0)


def picture(person, infrared, seed=0):
    return take_picture(camera(infrared), person, np.random.default_rng(seed), size=SIZE, difficulty=0.0)


def test_a_capsule_and_a_tube_cover_their_areas():
    limb = Capsule(0.0, SKIN, ((0.0, 0.2), (0.0, 0.8)), (0.1, 0.1), (0.2, 0.8))
    area = (rasterise([limb], FRAME).material == SKIN).sum()
    assert area == pytest.approx((0.6 * 0.2 + np.pi * 0.01) * 110**2, rel=0.02)
    trunk = Tube(0.0, UPPER, np.array([0.8, 0.2]), np.array([0.1, 0.2]), 0.0, 0.0, 0.13)
    fragments = rasterise([limb, trunk], FRAME)
    assert (fragments.material == UPPER).sum() == pytest.approx(0.6 * 0.3 * 110**2, rel=0.02)
    inside = fragments.material == UPPER
    assert fragments.turn[inside].min() == pytest.approx(-1.0, abs=0.1)
    assert fragments.up[inside].max() == pytest.approx(0.8, abs=0.02)


def test_parts_outside_the_picture_are_cut_off():
    limb = Capsule(0.0, SKIN, ((-5.0, 0.2), (-4.0, 0.8)), (0.1, 0.1), (0.2, 0.8))
    trunk = Tube(0.0, UPPER, np.array([3.0, 2.0]), np.array([0.1, 0.2]), 0.0, 0.0, 0.13)
    assert not rasterise([limb, trunk], FRAME).material.any()


def test_patterns_are_shares_and_differ_from_plain():
    along, up = np.meshgrid(np.linspace(-0.4, 0.4, 81), np.linspace(0.3, 0.9, 61))
    for kind in PATTERNS:
        share = pattern_share(Pattern(kind, period=0.1, duty=0.5, level=0.7), along, up)
        assert share.shape == along.shape
        assert 0.0 <= share.min() <= share.max() <= 1.0
        assert (share.max() > 0) == (kind != "plain")


def test_every_person_is_drawn_with_all_visible_materials_from_all_sides():
    for person in people(12):
        for azimuth in (0.0, np.pi / 2, np.pi, -np.pi / 2):
            parts = pose(person, azimuth, phase=1.0, stride=0.4)
            assert [part.depth for part in parts] == sorted(part.depth for part in parts)
            material = rasterise(parts, FRAME).material
            assert {SKIN, UPPER} <= set(np.unique(material))
            assert 0.08 < (material > 0).mean() < 0.6


def test_the_sensors_see_their_own_reflectance_only():
    """The infrared picture does not change with the dyes, nor the visible one with the infrared reflectance."""

    def recolor(cloth, **change):
        return dataclasses.replace(cloth, **{name: 1.0 - getattr(cloth, name) for name in change})

    person = people(1)[0]
    dyed = dataclasses.replace(person, materials={m: recolor(c, rgb=1) for m, c in person.materials.items()})
    other = dataclasses.replace(person, materials={m: recolor(c, nir=1) for m, c in person.materials.items()})
    assert (picture(person, True) == picture(dyed, True)).all()
    assert (picture(person, False) == picture(other, False)).all()
    assert (picture(person, False) != picture(dyed, False)).any()
    assert (picture(person, True) != picture(other, True)).any()


def test_infrared_brightness_is_independent_of_visible_brightness():
    cloths = [cloth for person in people(80) for m, cloth in person.materials.items() if m in (UPPER, LOWER)]
    visible = [cloth.rgb[0].mean() for cloth in cloths]
    assert abs(np.corrcoef(visible, [cloth.nir[0] for cloth in cloths])[0, 1]) < 0.25


def test_the_silhouette_is_the_same_for_both_sensors():
    person = people(1)[0]
    fragments = rasterise(pose(person, 0.3, 0.5, 0.3), FRAME)
    (visible, cover), (infrared, same) = (shade(fragments, person.materials, c, (0.5, 0.0)) for c in ("rgb", "nir"))
    assert visible.shape == (64, 32, 3)
    assert infrared.shape == (64, 32, 1)
    assert (cover == same).all()
    assert ((cover > 0) & (cover < 1)).any()  # edges are anti-aliased


def test_a_plain_white_cloth_shades_to_its_reflectance():
    white = {material: Cloth(np.full((2, 3), 0.8), np.full(2, 0.8)) for material in range(1, NUM_MATERIALS)}
    fragments = rasterise([Tube(0.0, UPPER, np.array([1.0, 0.0]), np.array([9.0, 9.0]), 0.0, 0.0, 0.13)], FRAME)
    radiance, cover = shade(fragments, white, "rgb", (0.0, 0.0))
    np.testing.assert_allclose(radiance[cover[..., 0] == 1], 0.8, atol=1e-3)


def test_difficulty_makes_pictures_noisier():
    person = people(1)[0]

    def roughness(difficulty):
        cam = draw_camera(np.random.default_rng(1), infrared=True, outdoor=False, size=SIZE, difficulty=difficulty)
        return cam.noise

    assert roughness(0.0) < roughness(0.5) < roughness(1.0)
    image = take_picture(camera(True), person, np.random.default_rng(0), size=SIZE, difficulty=1.0)
    assert image.dtype == np.uint8


def test_a_thermal_camera_sees_warm_skin_and_faint_prints():
    for person in people(20):
        warm = warm_materials(person)
        assert all((cloth.nir > 0).all() and (cloth.nir < 1).all() for cloth in warm.values())
        assert warm[SKIN].nir[0] == max(cloth.nir.max() for cloth in warm.values())
        upper = person.materials[UPPER].nir
        assert np.isclose(np.diff(warm[UPPER].nir), 0.3 * np.diff(upper))


def test_people_dress_for_the_season():
    worn = {s: {draw_person(np.random.default_rng(i), 0.0, s).lower for i in range(40)} for s in ("summer", "winter")}
    assert worn == {"summer": {"trousers", "shorts", "skirt"}, "winter": {"trousers", "long_skirt"}}
