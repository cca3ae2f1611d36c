import threading

import pytest

from vimlrp.ahead import read_ahead


def test_one_more_is_read_than_was_asked_for():
    read, third = [], threading.Event()

    def square(x):
        read.append(x)
        if x == 1:
            third.set()
        return x * x

    reads = read_ahead(square, range(5))
    assert next(reads) == 0
    assert third.wait(10)
    assert read == [0, 1]
    assert list(reads) == [1, 4, 9, 16]


def test_what_reading_raises_is_raised_at_its_turn():
    reads = read_ahead(lambda x: 1 / x, (1, 0, 2))
    assert next(reads) == 1
    with pytest.raises(ZeroDivisionError):
        next(reads)


def test_nothing_gives_nothing():
    assert list(read_ahead(str, ())) == []
