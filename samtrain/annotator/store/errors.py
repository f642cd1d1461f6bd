"""What the store refuses, in sentences that a person can act on; all are ValueErrors."""

from __future__ import annotations


class StoreError(ValueError):
    """Raised where the database itself cannot serve: a full disk, a file of another program, a server that is away."""


class NotFound(ValueError):
    """Raised for an image, mask or round that the store does not hold."""


class Conflict(ValueError):
    """Raised when somebody else, or an earlier change, has decided otherwise; nothing was written.

    reason: "leased" (somebody else works on the image), "expired" (the caller's own lease has ended and is free to be taken
            again), "done" (another annotator has finished the image), "closed" (its round is over), "locked" (a prefilled
            mask is only rejected), "opinion" (a mask of another opinion), "revision" (the mask was changed since it was read),
            "request" (another annotator used the same id of a save)
    holder: the annotator who has the image, where somebody has it
    """

    def __init__(self, message: str, *, reason: str, holder: str | None = None) -> None:
        super().__init__(message)
        self.reason, self.holder = reason, holder
