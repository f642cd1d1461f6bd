"""Times one click on an encoded image, from NumPy to masks of the image's size, against segment_anything and transformers.

bf16 is measured through `predict_torch`, which takes tensors; the models are cast before the clock starts.
"""

from __future__ import annotations

import numpy as np
import torch
from models import official_sam, our_sam, transformers_sam
from paired import Row, arguments, begin, compare, finish
from segment_anything import SamPredictor as OfficialPredictor

from samtrain import SamPredictor

HEIGHT, WIDTH = 1000, 1500


def main() -> None:
    parser = arguments(__doc__, pairs=15)
    parser.add_argument("--precision", nargs="+", choices=("float32", "bf16"), default=["float32", "bf16"])
    options = parser.parse_args()
    begin(options)
    official = official_sam()
    ours = our_sam(official)
    theirs, own = OfficialPredictor(official), SamPredictor(ours)
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    theirs.set_image(image)
    own.set_image(image)
    own.features = theirs.features
    rows: list[Row] = []
    if "float32" in options.precision:
        rows += in_float32(theirs, own, transformers_sam(ours), options.pairs)
    if "bf16" in options.precision:
        for predictor in (theirs, own):
            predictor.model.to(torch.bfloat16)
            predictor.features = predictor.features.to(torch.bfloat16)
        rows += in_bf16(theirs, own, options.pairs)
    finish(options, "click", rows)


def in_float32(theirs, own, transformed, pairs: int) -> list[Row]:
    click = {"point_coords": np.array([[700.0, 400.0]]), "point_labels": np.array([1])}
    what = f"a click given the embedding, {WIDTH} x {HEIGHT}, float32"

    def ask_theirs() -> tuple:
        return theirs.predict(**click)

    def ask_ours() -> tuple:
        return own.predict(**click)

    a, b = ask_theirs(), ask_ours()
    difference = f"{(a[0] != b[0]).mean():.0e} of the pixels"
    rows = [compare(what, "segment_anything", ask_theirs, ask_ours, pairs=pairs, difference=difference)]
    ask = transformers_click(transformed, theirs.features)
    difference = f"{(ask() != b[0]).mean():.0e} of the pixels"
    return [*rows, compare(what, "transformers", ask, ask_ours, pairs=pairs, difference=difference)]


def transformers_click(sam, features):
    """Returns a function that answers the click with transformers, scaled and post-processed as its processor does."""
    from transformers.models.sam.image_processing_sam import SamImageProcessor

    processor = SamImageProcessor()
    scale = 1024 / max(HEIGHT, WIDTH)
    reshaped = [[int(HEIGHT * scale + 0.5), int(WIDTH * scale + 0.5)]]

    @torch.no_grad()
    def ask() -> np.ndarray:
        points = torch.tensor([[[[700.0 * scale, 400.0 * reshaped[0][0] / HEIGHT]]]])
        labels = torch.tensor([[[1]]])
        output = sam(image_embeddings=features, input_points=points, input_labels=labels)
        masks = processor.post_process_masks(output.pred_masks, [[HEIGHT, WIDTH]], reshaped)
        return masks[0][0].numpy()

    return ask


def in_bf16(theirs, own, pairs: int) -> list[Row]:
    points = own.transform.apply_coords_torch(torch.tensor([[[700.0, 400.0]]]), (HEIGHT, WIDTH))
    labels = torch.ones(1, 1, dtype=torch.int64)

    def ask_theirs() -> tuple:
        # segment_anything multiplies float32 positions with the cast matrix, which works only under autocast
        with torch.autocast("cpu", torch.bfloat16):
            return theirs.predict_torch(points, labels)

    def ask_ours() -> tuple:
        return own.predict_torch(points, labels)

    what = f"a click given the embedding, {WIDTH} x {HEIGHT}, bf16"
    a, b = ask_theirs(), ask_ours()
    difference = f"{float((a[0] != b[0]).float().mean()):.0e} of the pixels"
    return [compare(what, "segment_anything", ask_theirs, ask_ours, pairs=pairs, difference=difference)]


if __name__ == "__main__":
    main()
