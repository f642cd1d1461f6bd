"""The time that a person would take for what the simulated annotator does.

Every number has its source on its line; "ours" marks an assumption. With these numbers five clicks take 14 s and thirteen
clicks 34 s, which is what SAM's annotators took per mask at the end and at the beginning of the first stage (section 4; the
paper does not say how many clicks these were).
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class TimeModel:
    """Seconds per action; all are settings of `annotator.time_model`."""

    find_object: float = 1.5  # 2.4 s for the first click on an object of a class (Bearman et al. 2016), less the click
    click: float = 0.9  # on each further object of the class (Bearman et al. 2016); on the same object: ours
    judge: float = 1.6  # to judge whether a mask is good: ours
    take_brush: float = 1.3  # point at a tool, 1.1 s, and press, 0.2 s (keystroke-level model, Card, Moran & Newell 1983)
    stroke: float = 0.9  # one segment, whatever its length (keystroke-level model)
    stroke_width: float = 0.1  # per brush width of length: ours; the keystroke-level model says 0.16 s per centimetre

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 0:
                raise ValueError(f"annotator.time_model.{field.name} is {value}: give 0 seconds or more")

    def clicks(self, count: int) -> float:
        """Returns the seconds to find an object, place `count` clicks and judge each result; the model takes no time."""
        return self.find_object + count * (self.click + self.judge)

    def brush_stroke(self, length: float, first: bool) -> float:
        """Returns the seconds to paint a stroke that is `length` brush widths long.

        The first stroke includes picking up the brush and one judgement for all strokes: a stroke shows its result while it
        is painted, whereas the result of a click appears after it and has to be looked at.
        """
        return (self.take_brush + self.judge) * first + self.stroke + self.stroke_width * length
