"""Says in words what the numbers of a training mean: a model that no longer listens to clicks, or that has forgotten."""

from __future__ import annotations

from collections.abc import Mapping

Metrics = Mapping[str, float | None]

CHANCE = 0.03  # of mean IoUs between two orders of the samples (experiments/README.md)
SOLVED = 0.95  # above this mean IoU, further clicks have nothing to correct


def advice(metrics: Metrics) -> list[str]:
    """Returns sentences about what is wrong with a trained model, each with its cure; none if all is well."""
    return [sentence for sentence in (_deaf(metrics), _no_better(metrics), _forgotten(metrics)) if sentence]


def _deaf(metrics: Metrics) -> str | None:
    for prefix, images in (("test/", "test"), ("val/", "validation")):
        one, five = metrics.get(f"{prefix}miou_1"), metrics.get(f"{prefix}miou_5")
        if one is None or five is None:
            continue
        if five > one or one > SOLVED:
            return None
        return (
            f"The model is deaf to further clicks: on the {images} images the mean IoU is {one:.3f} after 1 click and "
            f"{five:.3f} after 5. Train with more interactions (prompts.num_points=8 prompts.num_mask_only=2)."
        )
    return None


def _no_better(metrics: Metrics) -> str | None:
    before, after = metrics.get("test/start_miou_1"), metrics.get("test/miou_1")
    if before is None or after is None or after > before:
        return None
    return (
        f"The training has not made the model better: on the test images the mean IoU after 1 click was {before:.3f} before "
        f"and is {after:.3f}. Train for longer (trainer.max_steps), more parts (optim.trainable=null), or at another rate "
        "(optim.learning_rate_factor)."
    )


def _forgotten(metrics: Metrics) -> str | None:
    before, after = metrics.get("general/start_miou_1"), metrics.get("general/miou_1")
    if before is None or after is None or after > before - CHANCE:
        return None
    return (
        f"The model has forgotten: on the images of evaluator.general the mean IoU after 1 click was {before:.3f} before the "
        f"training and is {after:.3f}. Train fewer parts (optim.trainable=[mask_decoder.*]), more slowly "
        "(optim.learning_rate_factor), or on some general images, too (data.train)."
    )
