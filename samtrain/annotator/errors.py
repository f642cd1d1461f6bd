"""What the server answers when a request cannot be served: an HTTP status and a sentence."""

from __future__ import annotations


class Refused(ValueError):
    """Raised for a request that is not served; the page shows the sentence.

    extra: further fields of the answer beside `error`
    """

    def __init__(self, status: int, sentence: str, **extra: object) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.extra = status, sentence, extra


class Stale(Exception):
    """Raised for a preview that a newer request of the same annotator has overtaken."""
