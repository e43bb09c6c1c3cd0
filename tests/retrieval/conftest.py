import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # retrieval_oracle.py; importlib mode adds no folder


@pytest.fixture
def with_threads():
    """Calls a function with a number of threads."""
    before = torch.get_num_threads()

    def call(threads, function):
        torch.set_num_threads(threads)
        try:
            return function()
        finally:
            torch.set_num_threads(before)

    return call
