import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from vifast.data import synthetic

sys.path.insert(0, str(Path(__file__).parent))  # same_runs.py; importlib mode adds no folder


@pytest.fixture(scope="session")
def sysu_root(tmp_path_factory):
    """The smallest synthetic SYSU-MM01 that fills a batch."""
    root = tmp_path_factory.mktemp("synthetic") / "sysu"
    return synthetic.write("sysu", root, num_ids=8, size=(32, 32), images_per_camera=1)


@pytest.fixture
def tiny_overrides(sysu_root):
    """Overrides that make any preset train in a second."""
    return [
        f"data={sysu_root}",
        "dataset={name: sysu, height: 32, width: 16, num_ids: 2, num_instances: 2}",
        "options={backbone: resnet_tiny, backbone_width: 4, non_local: [0, 0, 1, 0]}",
        "epochs=3",
        "steps_per_epoch=2",
        "evaluate_every=2",
    ]


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate holds one precision for a whole process; tests use several."""
    AcceleratorState._reset_state(reset_partial_state=True)
