"""Whether records are the same, field by field; from Python 3.13 on, NaN makes them unequal."""

import math
from dataclasses import fields, is_dataclass

import numpy as np


def same(a, b):
    if is_dataclass(a):
        assert type(a) is type(b)
        for f in fields(a):
            same(getattr(a, f.name), getattr(b, f.name))
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, tuple | list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    elif isinstance(a, float) and math.isnan(a):
        assert math.isnan(b)
    else:
        assert a == b
