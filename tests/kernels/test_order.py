"""Scan orders: the tables they stand for, and what they refuse."""

import pytest
import torch

from vimlrp.errors import KernelError
from vimlrp.kernels import ScanOrder


def test_raster_orders() -> None:
    assert ScanOrder.forward().steps(3).tolist() == [[0, 1, 2]]
    assert ScanOrder.bidirectional().steps(3).tolist() == [[0, 1, 2], [2, 1, 0]]


def test_cross_walks_rows_then_columns_then_both_backwards() -> None:
    grid = torch.arange(6).view(2, 3)
    rows, columns = grid.flatten().tolist(), grid.t().flatten().tolist()
    expected = [rows, columns, rows[::-1], columns[::-1]]
    assert ScanOrder.cross(2, 3).steps(6).tolist() == expected


def test_from_index_walks_backwards_where_told() -> None:
    order = ScanOrder.from_index(torch.tensor([[2, 0, 1], [1, 2, 0]]), [False, True])
    assert order.steps(3).tolist() == [[2, 0, 1], [0, 2, 1]]
    assert order.directions == 2


def test_an_index_of_other_integers_becomes_int64() -> None:
    order = ScanOrder.from_index(torch.tensor([[1, 0]], dtype=torch.int32))
    assert order.index is not None
    assert order.index.dtype == torch.int64


def test_the_index_is_copied_to_a_device_once() -> None:
    order, meta = ScanOrder.cross(2, 2), torch.device("meta")
    copy = order.index_on(meta)
    assert copy is not None
    assert copy.device == meta
    assert order.index_on(meta) is copy
    assert ScanOrder.forward().index_on(meta) is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ScanOrder(()), "no direction"),
        (lambda: ScanOrder.cross(0, 3), "0 x 3 tokens"),
        (
            lambda: ScanOrder.from_index(torch.tensor([[0, 0, 1]])),
            "Row 0 .* permutation of 0..2",
        ),
        (lambda: ScanOrder.from_index(torch.tensor([[0, 1], [1, 2]])), "Row 1 .* no permutation"),
        (lambda: ScanOrder.from_index(torch.tensor([0, 1])), r"shape \(2,\)"),
        (lambda: ScanOrder.from_index(torch.zeros(1, 0)), r"shape \(1, 0\)"),
        (lambda: ScanOrder.from_index(torch.tensor([[0, 1]]), [True, False]), r"2 direction"),
        (
            lambda: ScanOrder.from_index(torch.tensor([[0.0, 1.0]])),
            "float32; it must hold int",
        ),
        (
            lambda: ScanOrder.from_index(torch.tensor([[False, True]])),
            "bool; it must hold int",
        ),
    ],
)
def test_refusals(build, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        build()
