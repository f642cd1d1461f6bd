"""How long a person takes for what the simulated annotator does.

A line says where its number comes from, or that it is ours: an assumption. In sum the 14 s that SAM's annotators took
for a mask at the end of the first stage are five clicks here, the 34 s of its beginning thirteen (SAM, section 4; the
paper does not say how many clicks they were).
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class TimeModel:
    """Seconds of each act; all are settings of `conf/annotator/`."""

    find_object: float = 1.5  # 2.4 s for the first click on an object of a class (Bearman et al. 2016), less the click
    click: float = 0.9  # that on each further object of the class (Bearman et al. 2016); on the same object: ours
    judge: float = 1.6  # is this mask good? Ours
    take_brush: float = 1.3  # point at a tool, 1.1 s, and press, 0.2 s (keystroke-level model, Card, Moran & Newell 1983)
    stroke: float = 0.9  # to draw one segment, without its length (keystroke-level model)
    stroke_width: float = 0.1  # each brush width of way: ours; the keystroke-level model says 0.16 s a centimetre

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 0:
                raise ValueError(f"annotator.time_model.{field.name} is {value}: take 0 seconds or more")

    def clicks(self, count: int) -> float:
        """To find an object and place `count` clicks and judge each answer; the model itself takes no time."""
        return self.find_object + count * (self.click + self.judge)

    def brush_stroke(self, way: float, first: bool) -> float:
        """To paint `way` brush widths; the first stroke takes the brush up, and one look at the end judges them all.

        A stroke shows its result while it is painted; a click's answer comes after it and has to be looked at.
        """
        return (self.take_brush + self.judge) * first + self.stroke + self.stroke_width * way
