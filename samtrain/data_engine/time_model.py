"""How long a person takes for what the simulated annotator does.

A line says where its number comes from, or that it is an assumption. Two papers fix the scale: a click on an object
takes 0.9 to 2.4 s, a yes or no to what a machine drew 1.6 s. The sum reproduces what SAM's annotators took, without
having been fitted to it: 14 s a mask (SAM, section 4) is five clicks here, 34 s thirteen. With the brush alone, no
model at all, 309 objects of 25 synthetic scenes took 39 s on average to an IoU of 0.9; COCO's polygons took 79 s
(Lin et al. 2014).
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class TimeModel:
    """Seconds of each act; all are settings of `conf/annotator/`."""

    find_object: float = 1.5  # 2.4 s to look for an object and click it, less the click (Bearman et al. 2016, median)
    click: float = 0.9  # each further click on an object already seen (Bearman et al. 2016, median)
    judge: float = 1.6  # is this mask good? A yes or no to a drawn box (Papadopoulos et al. 2016); masks: an assumption
    take_brush: float = 1.3  # point at a tool and press, 1.1 + 0.2 s (Card, Moran & Newell 1983, keystroke-level model)
    stroke: float = 0.9  # put the brush down at the right place: an assumption, as a click
    stroke_width: float = (
        0.1  # each brush width of way: the steering law's form (Accot & Zhai 1997), its rate an assumption
    )

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
