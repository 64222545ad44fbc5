"""Records of every generation decode to what was pickled; everything else is refused without effect."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jmp_data.errors import UnsafePickleError
from jmp_data.raw.restricted_pickle import load_record
from tests.jmp_data.raw.pickled_records import dump_before_pyg2, dump_since_pyg2, named, record_attributes


def assert_same(got, expected):
    if isinstance(expected, torch.Tensor):
        expected = expected.numpy()
    if isinstance(expected, np.ndarray):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
        assert got.flags.owndata
        assert got.flags.aligned
    else:
        assert type(got) is type(expected)
        assert got == expected


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dump", [dump_before_pyg2, dump_since_pyg2])
@pytest.mark.parametrize("num_atoms", [1, 80, 300, 70000])
def test_every_generation_of_data_objects_decodes(dump, protocol, num_atoms):
    attributes = record_attributes(num_atoms)
    got = load_record(dump(attributes, protocol), where="file: record 0")
    for name, value in attributes.items():
        if dump is dump_since_pyg2 and value is None:
            continue
        assert_same(got[name], value)


def test_a_function_call_is_refused_by_name():
    payload = b"\x80\x04" + named("os", "system") + b"\x8c\x04true\x85R."
    with pytest.raises(UnsafePickleError, match=r"a\.lmdb: record 3: the pickle asks for os\.system"):
        load_record(payload, where="a.lmdb: record 3")
