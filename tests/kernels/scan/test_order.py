"""Scan orders: the tables they stand for, and what they refuse."""

import itertools

import pytest
import torch

from vimlrp.errors import KernelError
from vimlrp.kernels import ScanOrder, selective_scan


def test_raster_orders() -> None:
    assert ScanOrder.forward().steps(3).tolist() == [[0, 1, 2]]
    assert ScanOrder.bidirectional().steps(3).tolist() == [[0, 1, 2], [2, 1, 0]]


def test_cross_walks_rows_then_columns_then_both_backwards() -> None:
    grid = torch.arange(6).view(2, 3)
    rows, columns = grid.flatten().tolist(), grid.t().flatten().tolist()
    expected = [rows, columns, rows[::-1], columns[::-1]]
    assert ScanOrder.cross(2, 3).steps(6).tolist() == expected


def neighbours(a: int, b: int, width: int) -> bool:
    """Whether two positions of a grid lie side by side."""
    return abs(a // width - b // width) + abs(a % width - b % width) == 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 1), (2, 3), (3, 4), (5, 5)])
def test_zigzag_steps_from_neighbour_to_neighbour(height: int, width: int) -> None:
    steps = ScanOrder.zigzag(height, width).steps(height * width).tolist()
    assert all(sorted(row) == list(range(height * width)) for row in steps)
    assert all(neighbours(a, b, width) for row in steps for a, b in itertools.pairwise(row))
    assert steps[2:] == [row[::-1] for row in steps[:2]]
    assert [row[0] for row in steps[:2]] == [0, 0]


def test_zigzag_goes_along_the_rows_and_then_along_the_columns() -> None:
    rows, columns = ScanOrder.zigzag(3, 2).steps(6).tolist()[:2]
    assert rows == [0, 1, 3, 2, 4, 5]
    assert columns == [0, 2, 4, 5, 3, 1]


@pytest.mark.parametrize("window", [1, 2, 3, 4, 9])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 3), (1, 7)])
def test_windows_are_finished_one_after_the_other(height: int, width: int, window: int) -> None:
    def place(position: int) -> tuple[int, ...]:
        row, column = divmod(position, width)
        return row // window, column // window, row % window, column % window

    forward, backward = ScanOrder.windows(height, width, window).steps(height * width).tolist()
    assert forward == sorted(range(height * width), key=place)
    assert backward == forward[::-1]


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
        (lambda: ScanOrder.cross(0, 3), "cross .* 0 x 3 tokens"),
        (lambda: ScanOrder.zigzag(3, 0), "zigzag .* 3 x 0 tokens"),
        (lambda: ScanOrder.windows(-1, 2, 2), "windows .* -1 x 2 tokens"),
        (lambda: ScanOrder.windows(4, 4, 0), "windows of 0 tokens"),
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


def test_an_order_made_in_inference_mode_serves_a_gradient_later() -> None:
    with torch.inference_mode():
        order = ScanOrder.cross(2, 2)
    u = torch.ones(1, 4, 1, requires_grad=True)
    low = torch.ones(1, 4, 4, 1)
    dt, rates = torch.ones(1, 4, 4, 1), torch.zeros(4, 1, 1)
    selective_scan(u, dt, rates, low, low, order=order).sum().backward()
    assert u.grad is not None


def test_an_order_keeps_its_own_index() -> None:
    index = torch.tensor([[0, 1, 2]])
    order = ScanOrder.from_index(index)
    index[0, 0] = 7
    assert order.steps(3).tolist() == [[0, 1, 2]]
