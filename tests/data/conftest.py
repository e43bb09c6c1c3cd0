import shutil

import pytest

from vifast.data import synthetic

SIZE = (48, 24)


@pytest.fixture(scope="session")
def sysu_tree(tmp_path_factory):
    return synthetic.write(
        "sysu", tmp_path_factory.mktemp("sysu") / "root", num_ids=16, num_test=8, seed=3, size=SIZE, images_per_camera=3
    )


@pytest.fixture(scope="session")
def regdb_tree(tmp_path_factory):
    return synthetic.write(
        "regdb", tmp_path_factory.mktemp("regdb") / "root", num_ids=8, seed=3, size=SIZE, images_per_camera=2
    )


@pytest.fixture(scope="session")
def llcm_tree(tmp_path_factory):
    return synthetic.write(
        "llcm", tmp_path_factory.mktemp("llcm") / "root", num_ids=12, num_test=5, seed=3, size=SIZE, images_per_camera=2
    )


@pytest.fixture(scope="session")
def vcm_tree(tmp_path_factory):
    return synthetic.write(
        "vcm", tmp_path_factory.mktemp("vcm") / "root", num_ids=8, num_test=3, seed=3, size=SIZE, images_per_camera=4
    )


@pytest.fixture
def sysu_copy(sysu_tree, tmp_path):
    return shutil.copytree(sysu_tree, tmp_path / "root")


@pytest.fixture
def regdb_copy(regdb_tree, tmp_path):
    return shutil.copytree(regdb_tree, tmp_path / "root")


@pytest.fixture
def llcm_copy(llcm_tree, tmp_path):
    return shutil.copytree(llcm_tree, tmp_path / "root")


@pytest.fixture
def vcm_copy(vcm_tree, tmp_path):
    return shutil.copytree(vcm_tree, tmp_path / "root")
