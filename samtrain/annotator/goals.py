"""What closes a round with people: images, masks or hours."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Goals:
    """A round closes as soon as one of these is reached; None: it is no goal.

    images: finished images; None: all images of the round
    masks:  accepted masks, without prefilled ones
    hours:  since the round was opened, by the clock on the wall
    """

    images: int | None = None
    masks: int | None = None
    hours: float | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and not value > 0:
                raise ValueError(f"annotator.{each.name} is {value}: give more than 0, or null for no such goal")

    def of(self, num_images: int) -> Goals:
        """Returns the goals of a round with this many images."""
        return Goals(images=min(self.images or num_images, num_images), masks=self.masks, hours=self.hours)

    def reached(self, *, images: int, masks: int, hours: float) -> bool:
        """Returns whether a round that has come this far has reached one of its goals."""
        done = ((images, self.images), (masks, self.masks), (hours, self.hours))
        return any(goal is not None and value >= goal for value, goal in done)

    def to_plain(self) -> dict[str, float]:
        """Returns the goals that there are, as the store holds them."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}

    def describe(self) -> str:
        """Returns the goals in words, such as "20 images are finished or 8 hours are over"."""
        words = (
            f"{self.images} images are finished" if self.images else "",
            f"{self.masks} masks are accepted" if self.masks else "",
            f"{self.hours:g} hours are over" if self.hours else "",
        )
        return " or ".join(each for each in words if each)
