"""Reading the next piece of work while the last one is computed."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["read_ahead"]

Place = TypeVar("Place")
Read = TypeVar("Read")


def read_ahead(read: Callable[[Place], Read], places: Iterable[Place]) -> Iterator[Read]:
    """Read one place after another, always one more than was asked for.

    Args:
        read: What gives the content of a place; runs in a thread of its own.
        places: In their order.

    Yields:
        What `read` gave, in the order of the places; what it raises is raised at its turn.
    """
    with ThreadPoolExecutor(1) as ahead:
        waiting: list[Future[Read]] = []
        try:
            for place in places:
                waiting.append(ahead.submit(read, place))
                if len(waiting) > 1:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
