import numpy as np
import pytest
from PIL import Image

from vifast.data import contact_sheet, sysu, vcm
from vifast.data.contact_sheet import HEADER, MARGIN
from vifast.data.images import read_image
from vifast.data.records import joined

SIZE = (48, 24)


def tile(path, row, column):
    """The tile of a sheet."""
    top, left = HEADER + row * 48, MARGIN + column * 24
    return np.array(Image.open(path))[top : top + 48, left : left + 24]


def test_rows_are_identities_and_columns_cameras(sysu_tree, tmp_path):
    dataset = sysu.load(sysu_tree)
    both = joined(dataset.query, dataset.gallery)
    path = contact_sheet.write(both, tmp_path / "sheet.png", num_ids=3, per_camera=2, size=SIZE)
    assert Image.open(path).size == (MARGIN + 6 * 2 * 24, HEADER + 3 * 48)
    identity = np.unique(both.labels)[1]
    for group, camera in enumerate((1, 2, 4, 5, 3, 6)):  # visible cameras before infrared ones
        rows = np.flatnonzero((both.labels == identity) & (both.cams == camera))
        for n in range(2):
            expected = read_image(both.paths[rows[n]], SIZE) if len(rows) else 127
            assert (tile(path, 1, 2 * group + n) == expected).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]


def test_a_camera_without_images_stays_grey(sysu_tree, tmp_path):
    gallery = sysu.load(sysu_tree).gallery
    absent = next(i for i in np.unique(gallery.labels) if not ((gallery.labels == i) & (gallery.cams == 1)).any())
    rows = gallery.select((gallery.labels == absent) | (gallery.cams == 1))
    row = np.unique(rows.labels).tolist().index(absent)
    path = contact_sheet.write(rows, tmp_path / "sheet.png", num_ids=8, per_camera=1, size=SIZE)
    assert (tile(path, row, 0) == 127).all()


def test_a_camera_of_two_sensors_has_two_groups_and_rows_have_names(vcm_tree, tmp_path):
    train = vcm.load(vcm_tree).train
    first = train.select(train.labels == 0)
    plain = contact_sheet.write(first, tmp_path / "plain.png", per_camera=2, size=SIZE)
    assert Image.open(plain).size == (MARGIN + 3 * 2 * 2 * 24, HEADER + 48)
    visible, infrared = (first.select(first.modality == m) for m in (0, 1))
    assert (tile(plain, 0, 0) == read_image(visible.paths[0], SIZE)).all()
    assert (tile(plain, 0, 6) == read_image(infrared.paths[0], SIZE)).all()
    named = contact_sheet.write(first, tmp_path / "named.png", size=SIZE, names=np.array([4711]))
    margins = [np.array(Image.open(path))[HEADER:, :MARGIN] for path in (plain, named)]
    assert (margins[0] != margins[1]).any()


def test_other_tracklets_come_first(vcm_tree, tmp_path):
    train = vcm.load(vcm_tree).train
    rows = np.flatnonzero((train.labels == 0) & (train.modality == 0))
    first = train.select(rows)
    first.cams[:] = 1  # three tracklets of one camera
    path = contact_sheet.write(first, tmp_path / "sheet.png", per_camera=4, size=SIZE)
    starts = [np.flatnonzero(first.tracklets == number)[0] for number in np.unique(first.tracklets)]
    for column, index in enumerate(sorted([*starts, 1])):
        assert (tile(path, 0, column) == read_image(first.paths[index], SIZE)).all()


@pytest.mark.parametrize("options", [{"num_ids": 0}, {"per_camera": 0}, {"size": (0, 1)}])
def test_bad_arguments(sysu_tree, tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        contact_sheet.write(sysu.load(sysu_tree).query, tmp_path / "sheet.png", **options)
