"""Clicks on an image: asks a SAM for the object at a point and saves its three answers beside the image.

    python examples/click_on_image.py sam_vit_b.pth photo.jpg 320 200

The checkpoint is Meta's, or `checkpoints/best.ckpt` of a run. The click is (x, y) in pixels of the image.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import samtrain

if len(sys.argv) != 5:
    sys.exit(__doc__)
checkpoint, path, x, y = sys.argv[1:]
image = np.asarray(Image.open(path).convert("RGB"))

# encode the image once; every prompt after that takes milliseconds
predictor = samtrain.SamPredictor(samtrain.load_sam(checkpoint))
predictor.set_image(image)

# one click on the object (label 1) is ambiguous, so three masks answer it: a whole, a part, a part of the part
masks, scores, _ = predictor.predict(point_coords=np.array([[float(x), float(y)]]), point_labels=np.array([1]))

# paint each mask over the image; the score is the model's own estimate of the mask's IoU
for number, (mask, score) in enumerate(zip(masks, scores, strict=True)):
    shown = np.where(mask[..., None], image // 2 + np.array([0, 57, 89], np.uint8), image)
    target = Path(path).with_suffix(f".mask_{number}.png")
    Image.fromarray(shown).save(target)
    print(f"{target}: predicted IoU {score:.2f}")
