"""The settings of text prompts: which CLIP, and how it is shown the objects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The `text` node.

    clip_name:       open_clip's name of the model, if `clip` is a file of weights alone
    quick_gelu:      see `load_clip`
    mask_attention:  in CLIP's last layer the output token looks only at positions inside of the object (appendix D.5)
    box_scale:       range of the factors by which the box of an object is enlarged before it is cut out (appendix D.5)
    zero_background: probability with which the pixels outside of the object become black (appendix D.5)
    embeddings:      a folder that task=embed embed.text=true wrote; None: embeddings are computed in each step
    score_thresh:    similarity below which a mask does not show what a text says (`SamTextGenerator`)
    templates:       sentences that a category's name is put into; their embeddings are averaged
    """

    clip_name: str | None = None
    quick_gelu: bool | None = None
    mask_attention: bool = True
    box_scale: tuple[float, float] = (1.0, 2.0)
    zero_background: float = 0.5
    embeddings: str | None = None
    score_thresh: float = 0.2
    templates: tuple[str, ...] = ("a photo of a {}",)

    def __post_init__(self) -> None:
        if not 1 <= self.box_scale[0] <= self.box_scale[1]:
            raise ValueError(f"text.box_scale is {list(self.box_scale)}: give two ascending factors of at least 1: [1.0, 2.0]")
        if not 0 <= self.zero_background <= 1:
            raise ValueError(f"text.zero_background is {self.zero_background}: give a probability from 0 to 1")
        if not self.templates or not all("{}" in template for template in self.templates):
            raise ValueError(f"text.templates are {list(self.templates)}: give sentences with {{}} in place of the name")
