"""Fine-tunes the mask decoder on a folder of images with masks: the training loop in plain PyTorch, to read and to change.

    python examples/finetune_on_folder.py sam_vit_b.pth IMAGES tuned.safetensors 200

`python -m samtrain +experiment=finetune` does the same with validation, checkpoints, resume and several GPUs.
"""

import sys

import torch

from samtrain import load_sam, save_safetensors
from samtrain.data.datasets import SamDataset, collate
from samtrain.data.prepare.importers import PrepareConfig, prepare
from samtrain.data.transforms import ResizeLongestSide
from samtrain.interact import interaction_losses
from samtrain.losses import SamLoss
from samtrain.prompts import PromptSampler, seeded_generator

if len(sys.argv) != 5:
    sys.exit(__doc__)
checkpoint, images, output, steps = sys.argv[1:]
sam = load_sam(checkpoint).train().requires_grad_(False)
sam.mask_decoder.requires_grad_(True)
tars = prepare("data/shards", PrepareConfig(root=images)) / "pool" / "*.tar"
data = SamDataset([str(tars)], ResizeLongestSide(image_size=sam.config.image_size), max_masks=16)
prompts, loss, optimizer = PromptSampler(), SamLoss(), torch.optim.AdamW(sam.mask_decoder.parameters(), lr=8e-5)
for step in range(int(steps)):
    rng = seeded_generator("cpu", step)
    # two images with up to 16 objects each, encoded once
    batch = collate([data.get(step, int(torch.randint(len(data), (), generator=rng))) for _ in range(2)])
    embeddings = sam.encode(sam.preprocess(batch.images, batch.input_sizes))
    # 11 interactions: a click or a box, clicks in the error, the mask alone
    settings = {"schedule": prompts.schedule(rng), "generator": rng, "num_objects": batch.weights.sum().clamp(min=1)}
    for _, terms in interaction_losses(sam, embeddings, batch, prompts, loss, **settings):
        terms.total.backward()
    optimizer.step()
    optimizer.zero_grad()
print(save_safetensors(sam, output))
