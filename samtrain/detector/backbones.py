"""The backbones of the detector: a narrow network of our own for two CPU cores, and ResNet-50, both with a feature pyramid."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

from samtrain.modeling.checkpoints import load_without_code

GROUPS = 8  # of the GroupNorms in the narrow network
RESNET_GROUPS = 32  # GroupNorm's own paper (Wu and He 2018)
NORMS = ("group", "frozen_batch")


def small_backbone(width: int) -> BackboneWithFPN:
    """Returns a pyramid of four levels with `width` channels at strides 4, 8, 16 and 32, over a narrow residual network.

    It uses GroupNorm, because a step has only a few images. Raises ValueError if the width is not a multiple of 8.
    """
    if width < GROUPS or width % GROUPS:
        raise ValueError(f"the width of the small detector is {width}: give a multiple of {GROUPS}")
    widths = [width, width * 3 // 2 // GROUPS * GROUPS, width * 2]
    # a stem at stride 2, then three stages of two blocks each, at strides 4, 8 and 16; the pyramid adds stride 32
    stem = nn.Sequential(
        nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False), nn.GroupNorm(GROUPS // 2, width // 2), nn.SiLU()
    )
    body = nn.Sequential(
        OrderedDict(
            stem=stem,
            layer1=nn.Sequential(_Residual(width // 2, widths[0], 2), _Residual(widths[0], widths[0], 1)),
            layer2=nn.Sequential(_Residual(widths[0], widths[1], 2), _Residual(widths[1], widths[1], 1)),
            layer3=nn.Sequential(_Residual(widths[1], widths[2], 2), _Residual(widths[2], widths[2], 1)),
        )
    )
    norm = partial(nn.GroupNorm, GROUPS)
    return BackboneWithFPN(body, {f"layer{i}": str(i - 1) for i in (1, 2, 3)}, widths, width, norm_layer=norm)


class _Residual(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (He et al. 2016)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.act = nn.SiLU(inplace=True)
        same = stride == 1 and in_channels == channels
        self.short: nn.Module = nn.Identity()
        if not same:
            self.short = nn.Sequential(
                nn.AvgPool2d(stride), nn.Conv2d(in_channels, channels, 1, bias=False), nn.GroupNorm(GROUPS, channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.act(y + self.short(x))


def resnet_backbone(width: int, norm: str) -> BackboneWithFPN:
    """Returns ResNet-50 under a pyramid of five levels with `width` channels at strides 4 to 64 (Lin et al. 2017).

    `norm` is "group" for a network that starts from random weights (He et al. 2018), or "frozen_batch" for one that starts
    from trained weights: its statistics are kept, and its stem and first layer are frozen, as in torchvision's recipe.
    """
    if norm not in NORMS:
        raise ValueError(f"the norm of the detector is {norm!r}: choose one of {', '.join(NORMS)}")
    frozen = norm == "frozen_batch"
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d if frozen else partial(nn.GroupNorm, RESNET_GROUPS))
    if frozen:
        for part in (body.conv1, body.layer1):
            part.requires_grad_(False)
    return BackboneWithFPN(body, {f"layer{i}": str(i - 1) for i in (1, 2, 3, 4)}, [256, 512, 1024, 2048], width)


def load_resnet_weights(backbone: BackboneWithFPN, path: str | Path) -> None:
    """Loads a flat state dict of torchvision's `resnet50` into the network below the pyramid, without its classifier.

    Raises ValueError for a file that does not exist, would run code, or holds another network.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist (detector.backbone_weights): give a .pth of torchvision's resnet50")
    state = load_without_code(path, key="detector.backbone_weights")
    wanted = backbone.body.state_dict().keys()
    if not isinstance(state, dict) or (missing := sorted(wanted - state.keys())):
        reason = f"it lacks {missing[0]}" if isinstance(state, dict) else f"it holds a {type(state).__name__}"
        raise ValueError(
            f"{path} is not a resnet50 (detector.backbone_weights): {reason}; give the flat state dict that torchvision offers"
        )
    backbone.body.load_state_dict({key: state[key] for key in wanted})
