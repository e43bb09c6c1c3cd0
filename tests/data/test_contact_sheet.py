import numpy as np
import pytest
from PIL import Image

from vifast.data import contact_sheet, sysu
from vifast.data.loader import read_image


def test_rows_are_identities_and_columns_cameras(sysu_tree, tmp_path):
    gallery = sysu.load(sysu_tree).gallery
    path = contact_sheet.write(gallery, tmp_path / "sheet.png", num_ids=3, per_camera=2, size=(48, 24))
    sheet = np.array(Image.open(path))
    assert sheet.shape == (3 * 48, 4 * 2 * 24, 3)
    identity = np.unique(gallery.labels)[1]
    shown = np.flatnonzero((gallery.labels == identity) & (gallery.cams == 4))[1]
    tile = sheet[48:96, 5 * 24 : 6 * 24]
    assert (tile == read_image(gallery.paths[shown], (48, 24))).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]


def test_a_camera_without_images_stays_grey(sysu_tree, tmp_path):
    gallery = sysu.load(sysu_tree).gallery
    absent = next(i for i in np.unique(gallery.labels) if not ((gallery.labels == i) & (gallery.cams == 1)).any())
    rows = gallery.select((gallery.labels == absent) | (gallery.cams == 1))
    row = np.unique(rows.labels).tolist().index(absent)
    path = contact_sheet.write(rows, tmp_path / "sheet.png", num_ids=8, per_camera=1, size=(48, 24))
    assert (np.array(Image.open(path))[row * 48 : (row + 1) * 48, :24] == 127).all()


@pytest.mark.parametrize("options", [{"num_ids": 0}, {"per_camera": 0}, {"size": (0, 1)}])
def test_bad_arguments(sysu_tree, tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        contact_sheet.write(sysu.load(sysu_tree).query, tmp_path / "sheet.png", **options)
