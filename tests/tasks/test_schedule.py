"""The paper's walk from ViT-B to ViT-H as the rounds take it, with encoders of a hundredth of their size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from samtrain.modeling.checkpoints import save_safetensors
from samtrain.modeling.sam import SAM_CONFIGS, Sam
from samtrain.run.build import make_sam
from samtrain.tasks import resolve
from samtrain.tasks.rounds.schedule import check_growth_of_rounds, rounds_of

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"vit_b": (32, 2, 16), "vit_l": (48, 3, 16), "vit_h": (64, 4, 14)}  # width, depth, patch of the MAE


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """scale=paper, its models small, and a file for each one's MAE weights."""
    overrides = ["+experiment=stage1", "scale=paper", "scale.image_size=64", "run_dir=run"]
    for name, (width, depth, patch) in SIZES.items():
        sizes = {"encoder_dim": width, "encoder_depth": depth, "encoder_heads": 2, "global_attn_indexes": (depth - 1,)}
        monkeypatch.setitem(SAM_CONFIGS, name, replace(SAM_CONFIGS[name], **sizes))
        vit = timm.models.vision_transformer.VisionTransformer(
            img_size=patch * 4, patch_size=patch, embed_dim=width, depth=depth, num_heads=2, num_classes=0
        )
        torch.save(vit.state_dict(), tmp_path / f"{name}.pth")
        overrides.append(f"recipes.{name}.mae={tmp_path / f'{name}.pth'}")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("config", overrides=overrides))


def trained(sam: Sam) -> Sam:
    """As if a round had moved every weight."""
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return sam


def same(sam: Sam, other: dict[str, torch.Tensor], part: str) -> bool:
    mine = getattr(sam, part).state_dict()
    return all(torch.equal(value, other[f"{part}.{key}"]) for key, value in mine.items())


def test_prompt_encoder_and_decoder_go_from_b_to_h(config: dict[str, Any], tmp_path: Path) -> None:
    check_growth_of_rounds(config)
    parent, init = None, None
    walked = []
    rounds = [(each.number, each.model) for each in rounds_of(config)]
    for number, model in [("0", config["model"]["name"]), *rounds]:
        sam = make_sam(config, model=model, init=init, key=f"rounds.{number}.model")
        block = sam.image_encoder.blocks[0].attn.qkv.weight
        from_mae = torch.equal(block, torch.load(tmp_path / f"{model}.pth")["blocks.0.attn.qkv.weight"])
        if parent is not None:
            assert same(sam, parent, "prompt_encoder") and same(sam, parent, "mask_decoder")
            assert from_mae != same(sam, parent, "image_encoder"), "an encoder is the parent's, or begins from MAE"
        walked.append((sam.config.model, from_mae))
        assert sam.config.drop_path == config["recipes"][model]["drop_path"]
        init = save_safetensors(trained(sam), tmp_path / f"{number}.safetensors")
        parent = {key: value.clone() for key, value in sam.state_dict().items()}
    assert walked == [("vit_b", True), *((f"vit_{size}", n % 2 == 1 and size != "b") for size in "blh" for n in (1, 2))]
