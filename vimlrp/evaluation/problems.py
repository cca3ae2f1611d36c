"""What could not be used or measured: a list that every stage adds to."""

from dataclasses import dataclass

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """What could not be used or measured.

    Args:
        sample: The name of the sample.
        kind: In a few words, to count by.
        detail: What was wrong with this one.
        method: Whose map it was, or empty where it is the sample itself.
    """

    sample: str
    kind: str
    detail: str
    method: str = ""
