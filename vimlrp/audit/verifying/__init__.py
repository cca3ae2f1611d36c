"""Does the model use the cue? It is taken away, and put where it was not."""

from vimlrp.audit.verifying.proving import (
    HOSTS,
    Proof,
    verify,
)

__all__ = ["HOSTS", "Proof", "verify"]
