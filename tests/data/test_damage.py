"""Each kind of damage to a dataset on disk, in either choice of the user: an error or a logged skip that names it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from vifast.data.damage import Damage
from vifast.data.inspection import inspect
from vifast.data.layouts import READERS, recognise
from vifast.data.records import Row


def first_id(root, name):
    return int(re.search(r"\d+", (root / name).read_text())[0])


def edit_line(path, number, change):
    lines = path.read_bytes().splitlines()
    lines[number - 1] = change(lines[number - 1])
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])
    return path


def listed_image(root, name, number):
    return root / (root / name).read_text().splitlines()[number - 1].split(" ")[0]


# What is done to a tree, and the message it must give. Those of SKIPPED can be left out, those of FATAL cannot.


def sysu_without_a_camera(root):
    shutil.rmtree(root / "cam4")
    return f"SYSU-MM01: folder not found: {root / 'cam4'}"


def sysu_with_a_word_among_identities(root):
    path = root / "exp" / "val_id.txt"
    path.write_text(f"x9,{path.read_text()}")
    return f"{path}:1: expected comma-separated identity numbers, got 'x9' in 'x9,"


def sysu_with_an_identity_of_nobody(root):
    path = root / "exp" / "train_id.txt"
    path.write_text(f"99,{path.read_text()}")
    return f"SYSU-MM01: {path}:1: identity 99 has no image"


def sysu_with_an_identity_without_infrared(root):
    path = root / "exp" / "train_id.txt"
    identity = first_id(root, "exp/train_id.txt")
    for camera in (3, 6):
        shutil.rmtree(root / f"cam{camera}" / f"{identity:04d}")
    return f"{path}:1: identity {identity} has no infrared image, only visible ones such as {root}"


def sysu_with_a_query_without_gallery(root):
    path = root / "exp" / "test_id.txt"
    identity = first_id(root, "exp/test_id.txt")
    for camera in (1, 2, 4, 5):
        shutil.rmtree(root / f"cam{camera}" / f"{identity:04d}", ignore_errors=True)
    return f"{path}:1: identity {identity} has no visible image, only infrared ones such as {root}"


def sysu_with_an_identity_in_train_and_test(root):
    train, test = (root / "exp" / f"{split}_id.txt" for split in ("train", "test"))
    identity = first_id(root, "exp/test_id.txt")
    train.write_text(f"{identity},{train.read_text()}")
    return f"{train}:1: identity {identity} is for training here and for testing at {test}:1"


def sysu_with_a_truncated_image(root):
    image = truncate(root / "cam5" / f"{first_id(root, 'exp/train_id.txt'):04d}" / "0002.jpg")
    return f"{image}: cannot be decoded (image file is truncated"


def sysu_with_an_empty_image(root):
    image = root / "cam5" / f"{first_id(root, 'exp/train_id.txt'):04d}" / "0002.jpg"
    image.write_bytes(b"")
    return f"image is an empty file: {image}"


def sysu_with_an_image_without_number(root):
    image = root / "cam4" / f"{first_id(root, 'exp/test_id.txt'):04d}" / "0003.jpg"
    image.rename(image.with_name("third.jpg"))
    return f"{image.with_name('third.jpg')}: expected a number as file name"


def sysu_with_a_lost_image_of_the_draw(root):
    image = root / "cam4" / f"{first_id(root, 'exp/test_id.txt'):04d}" / "0002.jpg"
    image.unlink()
    return f"{root / 'exp' / 'rand_perm_cam.mat'}: names an image that does not exist: {image}"


def regdb_with_a_line_without_label(root):
    path = edit_line(root / "idx" / "train_visible_1.txt", 3, lambda line: line.split(b" ")[0])
    return f"{path}:3: expected `relative/path label`, got 'Visible/"


def regdb_with_a_line_of_bytes(root):
    path = edit_line(root / "idx" / "train_visible_1.txt", 2, lambda line: b"\xff\xfe\x00" + line)
    return f"{path}:2: expected UTF-8 text, got b'\\xff\\xfe\\x00"


def regdb_with_an_image_twice(root):
    path = root / "idx" / "test_thermal_1.txt"
    again = path.read_bytes().splitlines()[0]
    edit_line(path, 4, lambda _: again)
    return f"{path}:4: {again.decode().split(' ')[0]} is listed twice, first at {path}:1"


def regdb_with_a_lost_image(root):
    image = listed_image(root, "idx/test_thermal_1.txt", 3)
    image.unlink()
    return f"{root / 'idx' / 'test_thermal_1.txt'}:3: image not found: {image}"


def regdb_with_a_path_that_no_file_can_have(root):
    path = edit_line(root / "idx" / "test_visible_1.txt", 1, lambda _: b"Visible/1/" + b"a" * 400 + b".bmp 0")
    return f"{path}:1: image cannot be read: '{root}"


def regdb_with_a_truncated_image(root):
    image = truncate(listed_image(root, "idx/train_visible_1.txt", 2))
    return f"{root / 'idx' / 'train_visible_1.txt'}:2: {image}: cannot be decoded (image file is truncated"


def regdb_with_an_identity_of_one_modality(root):
    path = root / "idx" / "test_visible_1.txt"
    identity = int(path.read_text().splitlines()[0].split("/")[1])
    thermal = root / "idx" / "test_thermal_1.txt"
    lines = [line for line in thermal.read_text().splitlines() if f"/{identity}/" not in line]
    thermal.write_text("\n".join(lines) + "\n")
    return f"{path}:1: identity {identity} has no infrared image, only visible ones such as {root / 'Visible'}"


def regdb_with_a_test_image_for_training(root):
    test, train = (root / "idx" / f"{part}_{{}}_1.txt" for part in ("test", "train"))
    for kind in ("visible", "thermal"):
        line = Path(str(test).format(kind)).read_bytes().splitlines()[0]
        edit_line(Path(str(train).format(kind)), 1, lambda _, line=line: line)
    identity = line.decode().split("/")[1]
    place = f"{str(train).format('visible')}:1"
    return f"{place}: identity {identity} is for training here and for testing at {str(test).format('visible')}:1"


def llcm_without_a_camera_of_the_test(root):
    shutil.rmtree(root / "test_nir" / "cam9")
    return f"LLCM: folder not found: {root / 'test_nir' / 'cam9'}"


def llcm_with_a_file_without_camera(root):
    path = edit_line(root / "idx" / "train_nir.txt", 2, lambda line: re.sub(rb"_c\d+_", b"_", line))
    return f"{path}:2: expected _c{{camera}}_ in the file name"


def llcm_with_two_labels_for_one(root):
    path = edit_line(root / "idx" / "train_nir.txt", 2, lambda line: re.sub(rb" 0$", b" 5", line))
    return f"{path}:2: identity {first_id(root, 'idx/train_nir.txt')} has the label 5 here and 0 further up"


def llcm_with_text_for_an_image(root):
    image = next((root / "test_vis").rglob("*.jpg"))
    image.unlink()  # a hard link to the listed one
    image.write_text("<html>quota exceeded</html>")
    return f"{image}: cannot be decoded (cannot identify image file"


def vcm_with_a_tracklet_of_frames_that_are_not(root):
    path = edit_line(root / "info" / "track_train_info.txt", 4, lambda line: b"2 900 904 1 1")
    return f"{path}:4: expected frames within the "


def vcm_with_a_broken_tracklet(root):
    path = edit_line(root / "info" / "track_train_info.txt", 2, lambda line: line[:5])
    return f"{path}:2: expected five numbers, `modality first last identity camera`, got "


def vcm_with_a_tracklet_in_the_other_modality(root):
    path = edit_line(root / "info" / "track_train_info.txt", 1, lambda line: b"2" + line[1:])
    return f"{path}:1: modality 2 is visible, but has the frame Train/"


def vcm_with_a_lost_frame(root):
    image = root / (root / "info" / "test_name.txt").read_text().splitlines()[2]
    image.unlink()
    return f"{root / 'info' / 'track_test_info.txt'}:1: image not found: {image}"


def vcm_with_a_truncated_frame(root):
    image = truncate(root / (root / "info" / "train_name.txt").read_text().splitlines()[5])
    return f"{root / 'info' / 'track_train_info.txt'}:2: {image}: cannot be decoded"


def vcm_with_a_query_of_no_tracklet(root):
    path = root / "info" / "query_IDX.txt"
    path.write_text(f"{path.read_text()}400\n")
    return f"{path}:2: expected lines of track_test_info.txt that name a tracklet, got '400'"


def sysu_without_a_list(root):
    (root / "exp" / "val_id.txt").unlink()
    return f"SYSU-MM01: file not found: {root / 'exp' / 'val_id.txt'}"


def sysu_with_half_a_permutation(root):
    path = root / "exp" / "rand_perm_cam.mat"
    path.write_bytes(path.read_bytes()[:900])
    return f"{path}: damaged or unsupported MATLAB file (the file ends inside an element)"


def sysu_with_counts_that_are_none(root):
    (root / "counts.json").write_text('{"train identities": "many"}')
    return f"{root / 'counts.json'}: not a table of counts (expected names with integers)"


def regdb_with_an_empty_list(root):
    path = root / "idx" / "train_thermal_1.txt"
    path.write_text("\n")
    return f"{path}:1: the list is empty"


def llcm_without_visible_images(root):
    shutil.rmtree(root / "test_vis")
    return "LLCM: no identity is left that has visible and infrared images"


def vcm_without_tracklets(root):
    (root / "info" / "track_test_info.txt").unlink()
    return f"HITSZ-VCM: file not found: {root / 'info' / 'track_test_info.txt'}"


SKIPPED = [
    sysu_without_a_camera,
    sysu_with_a_word_among_identities,
    sysu_with_an_identity_of_nobody,
    sysu_with_an_identity_without_infrared,
    sysu_with_a_query_without_gallery,
    sysu_with_an_identity_in_train_and_test,
    sysu_with_a_truncated_image,
    sysu_with_an_empty_image,
    sysu_with_an_image_without_number,
    sysu_with_a_lost_image_of_the_draw,
    regdb_with_a_line_without_label,
    regdb_with_a_line_of_bytes,
    regdb_with_an_image_twice,
    regdb_with_a_lost_image,
    regdb_with_a_path_that_no_file_can_have,
    regdb_with_a_truncated_image,
    regdb_with_an_identity_of_one_modality,
    regdb_with_a_test_image_for_training,
    llcm_without_a_camera_of_the_test,
    llcm_with_a_file_without_camera,
    llcm_with_two_labels_for_one,
    llcm_with_text_for_an_image,
    vcm_with_a_tracklet_of_frames_that_are_not,
    vcm_with_a_broken_tracklet,
    vcm_with_a_tracklet_in_the_other_modality,
    vcm_with_a_lost_frame,
    vcm_with_a_truncated_frame,
    vcm_with_a_query_of_no_tracklet,
]
FATAL = [
    sysu_without_a_list,
    sysu_with_half_a_permutation,
    sysu_with_counts_that_are_none,
    regdb_with_an_empty_list,
    llcm_without_visible_images,
    vcm_without_tracklets,
]


@pytest.fixture
def tree(request, tmp_path):
    """A copy of the tree that the test's damage is done to."""
    layout = request.param
    return shutil.copytree(request.getfixturevalue(f"{layout}_tree"), tmp_path / "root")


def each(damages):
    layouts = [(damage.__name__.split("_")[0], damage) for damage in damages]
    return pytest.mark.parametrize(
        ("tree", "damage"), layouts, indirect=["tree"], ids=[damage.__name__ for damage in damages]
    )


@each(SKIPPED)
def test_damage_is_an_error_or_a_logged_skip(tree, damage, caplog):
    layout = recognise(tree)
    whole = READERS[layout](tree, decode=True)
    assert not caplog.records
    message = damage(tree)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        READERS[layout](tree, decode=True)
    assert message in str(caught.value)

    dataset = READERS[layout](tree, on_damage="skip", decode=True)
    assert any(message in note for note in dataset.damage)
    assert any(f"left out: {note}" == record.message for note in dataset.damage for record in caplog.records)
    assert {record.name for record in caplog.records} == {"vifast.data"}
    for part in ("train", "query", "gallery"):
        have, had = set(getattr(dataset, part).paths), set(getattr(whole, part).paths)
        assert have
        assert all(path.is_file() for path in have)
        assert len(had) >= len(have)
    assert dataset.train.labels.max() == dataset.num_labels - 1
    assert len(dataset.trials) == len(whole.trials)
    assert all(len(trial) for trial in dataset.trials)

    found = inspect(tree)
    assert not found.sound
    assert any(message in note for note in found.damage)


@each(FATAL)
@pytest.mark.parametrize("on_damage", ["error", "skip"])
def test_what_cannot_be_left_out_is_an_error(tree, damage, on_damage):
    layout, message = recognise(tree), damage(tree)
    options = {"layout": "folders"} if layout == "llcm" else {}
    if on_damage == "error" and layout == "llcm":
        message = f"LLCM: folder not found: {tree / 'test_vis'}"
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        READERS[layout](tree, on_damage=on_damage, **options)
    found = inspect(tree)
    assert not found.sound
    assert any(message in note for note in found.damage)


def test_the_next_of_a_permutation_takes_the_place_of_a_lost_image(sysu_copy):
    whole = READERS["sysu"](sysu_copy)
    sysu_with_a_lost_image_of_the_draw(sysu_copy)
    identity = first_id(sysu_copy, "exp/test_id.txt")
    left = READERS["sysu"](sysu_copy, on_damage="skip")
    for trial in range(10):
        before, after = whole.trial_gallery(trial), left.trial_gallery(trial)
        assert len(after) == len(before)
        moved = {path for path in after.paths if path not in before.paths}
        assert {(path.parents[1].name, int(path.parent.name)) for path in moved} <= {("cam4", identity)}


def test_other_numbers_than_expected_are_logged(llcm_copy, caplog):
    for path in (llcm_copy / "test_vis").rglob("*_f00002_vis.jpg"):
        path.unlink()
    READERS["llcm"](llcm_copy)
    assert "test visible images: expected 30 (counts.json), found 15" in caplog.text
    caplog.clear()
    (llcm_copy / "counts.json").unlink()
    READERS["llcm"](llcm_copy)
    assert f"LLCM at {llcm_copy}: train identities: expected 713 (published), found 7; " in caplog.text


def test_decoding_is_a_choice(sysu_copy):
    sysu_with_a_truncated_image(sysu_copy)
    assert READERS["sysu"](sysu_copy).damage == ()
    assert inspect(sysu_copy, decode=False).sound


def test_a_fault_of_the_place_itself(tmp_path):
    damage = Damage("d", "skip", False)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "file").write_text("x")
    rows = [Row(tmp_path / name, 1, 1, 0, "list:1") for name in ("folder.jpg", "file/a.jpg", "a\0.jpg", "file")]
    assert damage.readable(rows) == rows[3:]
    assert [np.char.startswith(note, "list:1: image ") for note in damage.notes] == [True] * 3
