"""`python -m vimlrp.cli`."""

from vimlrp.cli import main

main()
