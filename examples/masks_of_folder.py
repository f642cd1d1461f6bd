"""Makes masks of everything in a folder of images and writes a JSON in SA-1B's form for each image.

    python examples/masks_of_folder.py sam_vit_b.pth IMAGES OUTPUT

For many images or several GPUs, `python -m samtrain +experiment=stage3` writes shards and resumes after a kill.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import samtrain

if len(sys.argv) != 4:
    sys.exit(__doc__)
checkpoint, folder, output = sys.argv[1:]

# a grid of 32 x 32 clicks per image; lower the two thresholds for a model that is less sure of itself
generator = samtrain.SamAutomaticMaskGenerator(
    samtrain.load_sam(checkpoint),
    points_per_side=32,
    pred_iou_thresh=0.88,
    stability_score_thresh=0.95,
    output_mode="coco_rle",
)
Path(output).mkdir(parents=True, exist_ok=True)
paths = [path for path in sorted(Path(folder).iterdir()) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
for number, path in enumerate(paths, start=1):
    image = np.asarray(Image.open(path).convert("RGB"))
    height, width, _ = image.shape
    masks = [{"id": i, **record} for i, record in enumerate(generator.generate(image), start=1)]
    about = {"image_id": number, "width": width, "height": height, "file_name": path.name}
    (Path(output) / f"{path.stem}.json").write_text(json.dumps({"image": about, "annotations": masks}))
    print(f"{path.name}: {len(masks)} masks")
