"""Which classes fall apart, or stand out, more than chance and other classes explain?"""

from vimlrp.audit.screening.ranking import (
    FEWEST,
    Progress,
    equal_count,
    screen,
    with_one_thread,
)

__all__ = ["FEWEST", "Progress", "equal_count", "screen", "with_one_thread"]
