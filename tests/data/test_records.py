import numpy as np
import pytest

from vifast.data.records import Samples, make_samples, relabel


def test_columns_must_agree():
    with pytest.raises(ValueError, match=r"cams: expected shape \(1,\), got \(2,\)"):
        Samples(("a",), np.zeros(1), np.zeros(2), np.zeros(1))


def test_select_by_mask_and_by_position():
    samples = make_samples([("a", 7, 1, 0), ("b", 9, 3, 1), ("c", 7, 3, 1)])
    assert samples.select(samples.modality == 1).paths == ("b", "c")
    assert samples.select(np.array([2, 0])).labels.tolist() == [7, 7]


def test_relabel_keeps_the_order_of_identities():
    samples, identities = relabel(make_samples([("a", 9, 1, 0), ("b", 2, 1, 0), ("c", 9, 3, 1)]))
    assert identities.tolist() == [2, 9]
    assert samples.labels.tolist() == [1, 0, 1]


def test_no_rows():
    assert len(make_samples([])) == 0
