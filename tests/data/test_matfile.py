import re

import numpy as np
import pytest

from vifast.data.matfile import read_mat, write_mat


def nested(shapes):
    cells = np.empty((len(shapes), 1), dtype=object)
    for i, shape in enumerate(shapes):
        cells[i, 0] = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    outer = np.empty((2, 1), dtype=object)
    outer[0, 0] = cells
    outer[1, 0] = np.array([[1.5, -2.0]])
    return outer


def check(got):
    assert got.shape == (2, 1)
    assert [cell.shape for cell in got[0, 0].flat] == [(10, 3), (10, 0), (1, 1)]
    np.testing.assert_array_equal(got[0, 0][0, 0], np.arange(30).reshape(10, 3))
    np.testing.assert_array_equal(got[1, 0], [[1.5, -2.0]])


SHAPES = [(10, 3), (10, 0), (1, 1)]


def test_round_trip(tmp_path):
    path = tmp_path / "a.mat"
    write_mat(path, {"rand_perm_cam": nested(SHAPES), "n": np.array([[7]], np.int32)})
    got = read_mat(path)
    assert list(got) == ["rand_perm_cam", "n"]
    check(got["rand_perm_cam"])
    assert got["n"].dtype == np.int32


def test_scipy_reads_what_we_write(tmp_path):
    io = pytest.importorskip("scipy.io")
    write_mat(tmp_path / "a.mat", {"x": nested(SHAPES)})
    check(io.loadmat(tmp_path / "a.mat")["x"])


@pytest.mark.parametrize("compressed", [False, True])
def test_reads_what_scipy_writes(tmp_path, compressed):
    io = pytest.importorskip("scipy.io")
    io.savemat(tmp_path / "a.mat", {"x": nested(SHAPES)}, do_compression=compressed)
    check(read_mat(tmp_path / "a.mat")["x"])


def test_small_elements_and_narrow_storage(tmp_path):
    """MATLAB stores a double array of small integers as bytes, and short bodies inside the tag."""
    import struct

    def small(kind, body):
        return struct.pack("<HH4s", kind, len(body), body)

    content = (
        struct.pack("<IIII", 6, 8, 6, 0)
        + struct.pack("<IIii", 5, 8, 1, 3)
        + small(1, b"v")
        + small(2, bytes([1, 2, 9]))
    )
    header = b"MATLAB 5.0".ljust(124) + struct.pack("<H2s", 0x0100, b"IM")
    (tmp_path / "a.mat").write_bytes(header + struct.pack("<II", 14, len(content)) + content)
    got = read_mat(tmp_path / "a.mat")["v"]
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, [[1, 2, 9]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain text", "not a MATLAB level 5 file"),
        (b"MATLAB 7.3 MAT-file".ljust(512), "HDF5"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "a.mat"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_mat(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [140, 200, 400])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "a.mat"
    write_mat(path, {"x": nested(SHAPES)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_mat(path)


def test_unsupported_class_is_refused(tmp_path):
    io = pytest.importorskip("scipy.io")
    io.savemat(tmp_path / "a.mat", {"x": {"field": 1}})
    with pytest.raises(ValueError, match="MATLAB class 2 is neither"):
        read_mat(tmp_path / "a.mat")
