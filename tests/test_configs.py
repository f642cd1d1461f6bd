"""Every config composes, the scale's numbers win, every `_target_` takes its keys, the paper's numbers are in."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.utils import get_class

from samtrain.data.prepare.config import PrepareConfig
from samtrain.data_engine.pool import divide_pool
from samtrain.detector import DetectorRecipe, build_detector
from samtrain.modeling.build import sam_config
from samtrain.modeling.checkpoints import save_official, save_safetensors
from samtrain.modeling.sam import SAM_CONFIGS, Sam
from samtrain.prompts import seeded_generator
from samtrain.run.build import loggers_of, make_loss, make_prompts, make_sam, optimizer_config, sam_config_of
from samtrain.run.trainer import micro_batches, validation_interval
from samtrain.tasks import TASKS, resolve
from samtrain.tasks import detector as detector_task
from samtrain.tasks.rounds.schedule import rounds_of
from samtrain.training.optim import AdamWConfig, param_groups, rate_factor, run_milestones

CONF = Path(__file__).resolve().parents[1] / "conf"
MISSING = {  # what only the user knows
    "data=folder": ["data.root=."],
    "data=shards": ["data.train={a:{urls:a.tar},b:{urls:b.tar,frame:native}}", "data.val=v.tar"],
    "data=sa1b": ["data.train.automatic.urls=a.tar", "data.val=v.tar"],
    "data=sa1b_all_stages": [
        *(f"data.train.{stage}.urls=a.tar" for stage in ("automatic", "manual", "semi_automatic")),
        "data.val=v.tar",
    ],
    "data=sa1b_annotated": ["data.train.manual.urls=a.tar", "data.train.semi_automatic.urls=b.tar", "data.val=v.tar"],
}
OWN_DATA = {"sa1b": "data=sa1b", "generator_model": "data=sa1b_annotated"}  # experiments that bring a form of data along


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def overrides_of(*groups: str) -> list[str]:
    return [f"{group}={name}" for group in groups for name in options(group)]


EXPERIMENTS, SCALES = options("experiment"), options("scale")


def config_of(*overrides: str) -> dict[str, Any]:
    """The composed config as tasks get it."""
    return deepcopy(_composed(overrides))


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose("config", overrides=[*overrides, "run_dir=run"]))


def experiment_of(name: str, scale: str = "laptop", *overrides: str) -> dict[str, Any]:
    given = [f"+experiment={name}", f"scale={scale}", *overrides]
    if name == "finetune":
        given.append("checkpoint=sam.pth")
    if name in OWN_DATA and not any(each.startswith("data=") for each in overrides):
        given += MISSING[OWN_DATA[name]]
    return config_of(*given)


def at(config: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        config = config[key]
    return config


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values


def targets(values: Any) -> Iterator[dict[str, Any]]:
    if isinstance(values, dict):
        if "_target_" in values:
            yield values
        for value in values.values():
            yield from targets(value)


# ---- composing


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_with_every_scale(experiment: str, scale: str) -> None:
    config = experiment_of(experiment, scale)
    assert config["name"] == experiment
    assert config["task"] in TASKS
    if experiment != "finetune":  # its model is the checkpoint's
        assert sam_config_of(config).model == config["model"]["name"]


@pytest.mark.parametrize("task", TASKS)
def test_plain_tasks_compose(task: str) -> None:
    assert config_of(f"task={task}")["name"] == task


@pytest.mark.parametrize("override", overrides_of("data", "prompts", "loss", "logger", "annotator"))
def test_every_option_composes(override: str) -> None:
    experiment_of("stage1", "laptop", override, *MISSING.get(override, []))


def test_mistyped_keys_are_refused() -> None:
    with pytest.raises(ConfigCompositionException, match="max_stepz"):
        config_of("trainer.max_stepz=3")
    with pytest.raises(ConfigCompositionException, match="lerning"):
        config_of("+experiment=stage1", "rounds.1.lerning_rate_factor=3")


def test_a_round_can_be_set_alone_and_left_out() -> None:
    config = config_of("+experiment=stage1", "rounds.2.images=7", "~rounds.6")
    assert config["rounds"]["2"]["images"] == 7
    assert config["rounds"]["1"]["images"] == config["scale"]["rounds"]["1"]["images"]
    assert list(config["rounds"]) == ["1", "2", "3", "4", "5"]


def test_only_the_main_config_speaks_to_hydra() -> None:
    files = [path for path in CONF.rglob("*.yaml") if path != CONF / "config.yaml"]
    assert not [path for path in files if "hydra" in (yaml.safe_load(path.read_text()) or {})]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_headers_say_what_to_expect(experiment: str) -> None:
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    for word in ("paper", "command", "hardware", "time", "expect"):
        assert any(line.startswith(f"# {word} ") for line in lines), word
    assert any(f"python -m samtrain +experiment={experiment}" in line for line in lines)


# ---- scales


COMMON = {
    "batch_size": "loader.batch_size",
    "max_masks": "loader.max_masks",
    "max_val_masks": "loader.max_val_masks",
    "val_batch_size": "loader.val_batch_size",
    "num_workers": "loader.num_workers",
    "cache_images": "loader.cache_images",
    "images_per_step": "trainer.images_per_step",
    "precision": "trainer.precision",
    "devices": "trainer.devices",
    "num_nodes": "trainer.num_nodes",
    "activation_checkpointing": "trainer.activation_checkpointing",
    "val_every_steps": "trainer.val_every_steps",
    "checkpoint_every_steps": "callbacks.checkpoint_every_steps",
    "log_every_steps": "callbacks.log_every_steps",
    "num_points": "prompts.num_points",
    "num_mask_only": "prompts.num_mask_only",
    "loss_resolution": "loss.resolution",
    "supervise_all_iou": "loss.supervise_all_iou",
    "schedule": "optim.schedule",
    "flip_probability": "loader.flip_probability",
    "max_clicks": "annotator.max_clicks",
    "synthetic.size": "public.size",
    **{f"synthetic.{split}": f"public.splits.{split}" for split in ("public", "pool", "val", "test", "crowded")},
    "probe_images": "engine.probe_images",
    "probe_images_stage_2": "engine.probe_images_stage_2",
    "large_scale_jitter": "engine.large_scale_jitter",
    "size_limits": "size_limits",
    **{f"prefill.{name}": f"prefill.{name}" for name in ("box_score_thresh", "pred_iou_thresh", "stability_score_thresh")},
}
OWN = {
    "pretrain": {"pretrain.model": "model.name", "image_size": "model.image_size", "mae": "model.mae"},
    "stage1": {},
    "stage2": {},
    "data_engine": {},
    "finetune": {"finetune.val_every_steps": "trainer.val_every_steps"},
    "overfit": {
        "overfit.model": "model.name",
        "overfit.num_points": "prompts.num_points",
        "overfit.flip_probability": "loader.flip_probability",
        "image_size": "model.image_size",
        "mae": "model.mae",
    },
    "sa1b": {"sa1b.model": "model.name", "image_size": "model.image_size", "mae": "model.mae"},
    "generator_model": {
        "generator_model.model": "model.name",
        "image_size": "model.image_size",
        "mae": "model.mae",
        "large_scale_jitter": "loader.large_scale_jitter",
    },
    "text": {
        "text.model": "model.name",
        "image_size": "model.image_size",
        "mae": "model.mae",
        **{f"text.{name}": f"loader.{name}" for name in ("batch_size", "large_scale_jitter", "min_mask_area")},
        **{f"text.{name}": f"prompts.{name}" for name in ("num_points", "num_mask_only")},
        **{f"text.{name}": f"prompts.{name}" for name in ("text_probability", "click_and_text_probability")},
        "text.images_per_step": "trainer.images_per_step",
        "text.trainable": "optim.trainable",
    },
    "clip": {},
    "stage3": {},
    "zero_shot_points": {},
    "zero_shot_sa23": {},
    "zero_shot_automatic": {},
    "fairness": {},
    "learning_curve": {},
    "zero_shot_proposals": {},
    "zero_shot_instances": {},
    "zero_shot_edges": {},
    "zero_shot_text": {},
    "detector": {
        f"detector.{name}": f"detector.{name}"
        for name in (
            "name", "image_size", "batch_size", "steps", "learning_rate", "warmup_steps", "val_every_steps",
        )  # fmt: skip
    },
}


ASSISTED = {
    f"rounds.{k}.{name}": f"rounds.{k}.{name}"
    for k in range(1, 7)
    for name in ("model", "images", "steps", "learning_rate_factor")
}
SEMI_AUTOMATIC = {
    f"rounds.{k}.{name}": f"rounds.{k}.{name}"
    for k in range(7, 12)
    for name in ("model", "images", "steps", "learning_rate_factor", "detector_steps")
}
FIXED = {
    "generator_model": {"prompts.num_points"},  # 3 after the first at every scale: it is what that model is
    "sa1b": {"loader.flip_probability"},  # the paper's final recipe has no augmentation, however small
    **dict.fromkeys(("zero_shot_instances", "zero_shot_proposals"), {"size_limits"}),  # COCO's, as in the paper's tables
}
ROUNDS = {"stage1": ASSISTED, "stage2": SEMI_AUTOMATIC, "data_engine": ASSISTED | SEMI_AUTOMATIC}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_numbers_of_the_scale_win(experiment: str, scale: str) -> None:
    config = experiment_of(experiment, scale)
    untrained = experiment.startswith(("stage3", "zero_shot", "fairness", "learning_curve", "clip"))
    training = "pretrain" if experiment in ROUNDS or untrained else experiment  # its first model's, the default
    pairs = COMMON | OWN[experiment]
    if experiment != "detector":  # its numbers stand in a node of its own
        pairs |= {
            f"{training}.steps": "trainer.max_steps",
            f"{training}.learning_rate_factor": "optim.learning_rate_factor",
        }
    pairs |= ROUNDS.get(experiment, {})
    wins = {place: source for source, place in pairs.items()}  # an experiment's own number before the common one
    for place in wins.keys() - FIXED.get(experiment, set()):
        source = wins[place]
        assert at(config, place) == at(config["scale"], source), place


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_set_no_number_that_a_scale_sets(experiment: str) -> None:
    body = dict(leaves(yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_text())))
    scaled = {*COMMON.values(), "trainer.max_steps", "optim.learning_rate_factor"}
    for place, value in body.items():
        if place in FIXED.get(experiment, ()):
            continue
        if place in scaled or (place.startswith("rounds.") and not place.endswith(".stage")):
            assert str(value).startswith(("${scale.", "${by_checkpoint:")), place


def test_no_number_of_a_scale_goes_unasked() -> None:
    """Each one stands above with the place where it wins, so that none is written in vain."""
    known = {*COMMON, *(key for pairs in (*OWN.values(), *ROUNDS.values()) for key in pairs)}
    trainings = ("pretrain", "finetune", "overfit", "sa1b", "generator_model", "text")
    known |= {f"{name}.{key}" for name in trainings for key in ("steps", "learning_rate_factor")}
    body = yaml.safe_load((CONF / "scale" / "laptop.yaml").read_text())
    assert {key for key, _ in leaves(body)} <= known


def places(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields each value of a file of conf/ with its key in the composed config."""
    group = ".".join(path.relative_to(CONF).parent.parts)
    package = "" if group == "experiment" else group
    yield from leaves(yaml.safe_load(path.read_text()) or {}, package)


def test_a_number_of_a_scale_sets_one_key() -> None:
    """So a number has one name to set: that of the node which takes it from the scale."""
    files = [path for path in CONF.rglob("*.yaml") if path.parent.name != "scale"]
    used = Counter(key for path in files for key in re.findall(r"\$\{scale\.([\w.]+)\}", path.read_text()))
    assert set(used) == {key for key, _ in leaves(yaml.safe_load((CONF / "scale" / "laptop.yaml").read_text()))}
    # +experiment=generator_model trains on data of stages 1 and 2, as the rounds of the engine do
    assert {key for key, count in used.items() if count > 1} == {"large_scale_jitter"}


def test_no_file_repeats_a_number_that_a_scale_sets() -> None:
    files = [path for path in CONF.rglob("*.yaml") if path.parent.name not in ("scale", "recipe", "hydra", "launcher")]
    given = [(path.stem, *place) for path in files for place in places(path)]
    scaled = {key for _, key, value in given if str(value).startswith("${scale.")}
    literal = {(name, key) for name, key, value in given if key in scaled and not str(value).startswith("${")}
    assert literal == {
        ("generator", "prompts.num_points"),  # appendix B trains with three further clicks at every scale
        ("sa1b", "loader.flip_probability"),  # appendix A at every scale
        ("zero_shot_instances", "size_limits"), ("zero_shot_proposals", "size_limits"),  # COCO's
        ("config", "loader.large_scale_jitter"),  # null: +experiment=generator_model alone takes the scale's
        ("config", "loader.min_mask_area"), ("overfit", "loader.min_mask_area"),  # +experiment=text alone takes the scale's
        ("config", "optim.trainable"), ("finetune", "optim.trainable"),
        ("finetune", "model.name"), ("finetune", "model.image_size"), ("finetune", "model.mae"),  # the checkpoint's own
    }  # fmt: skip


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_step_is_whole_micro_batches_everywhere(experiment: str, scale: str) -> None:
    config = experiment_of(experiment, scale)
    models = {each["model"] for each in config.get("rounds", {}).values()} | {config["model"]["name"] or "vit_b"}
    assert all(micro_batches(config, model) >= 1 for model in models)


@pytest.mark.parametrize("scale", SCALES)
def test_the_pool_holds_what_the_rounds_ask_for(scale: str) -> None:
    config = experiment_of("stage1", scale)
    rounds, probe = [each["images"] for each in config["rounds"].values()], config["engine"]["probe_images"]
    assert divide_pool(config["data"]["splits"]["pool"], rounds, probe) == (probe, rounds)
    config = experiment_of("stage2", scale)
    rounds, probe = [each["images"] for each in config["rounds"].values()], config["engine"]["probe_images_stage_2"]
    assert divide_pool(config["data"]["splits"]["crowded"], rounds, probe) == (probe, rounds)


def test_both_stages_are_the_two_in_their_order() -> None:
    both, first, second = (experiment_of(name) for name in ("data_engine", "stage1", "stage2"))
    assert both["rounds"] == first["rounds"] | second["rounds"]
    assert [each.stage for each in rounds_of(both)] == ["assisted_manual"] * 6 + ["semi_automatic"] * 5
    assert (both["task"], first["task"], second["task"]) == ("rounds",) * 3


def test_ones_own_images_are_those_of_both_stages() -> None:
    """No experiment brings data of its own along."""
    for name in ("stage1", "stage2", "data_engine"):
        assert experiment_of(name, "laptop", "data=folder", "data.root=mine")["data"]["root"] == "mine"


def test_all_scales_have_the_same_keys() -> None:
    bodies = [yaml.safe_load((CONF / "scale" / f"{scale}.yaml").read_text()) for scale in SCALES]
    first, *others = [{key for key, _ in leaves(body)} for body in bodies if "defaults" not in body]
    assert all(each == first for each in others)
    for body in bodies:  # one that builds on another changes only numbers that the other has
        assert {key for key, _ in leaves(body)} - {"defaults"} <= first


# ---- what is built from them


GENERATORS = [name for name in overrides_of("generator") if name != "generator=base"]


@pytest.mark.parametrize(
    "override", [*overrides_of("prompts", "loss", "annotator"), *GENERATORS, "+generate/release=sa1b"]
)
def test_every_target_takes_its_keys(override: str) -> None:
    found = list(targets(config_of(override)))
    assert found
    for node in found:
        accepted = set(inspect.signature(get_class(node["_target_"])).parameters)
        beside = {"_target_", "_partial_"}
        assert set(node) - beside <= accepted, node["_target_"]


def test_sam_and_sa1b_are_what_their_sources_say() -> None:
    """The public class's defaults; appendix B: 3,072 clicks on 21 crops."""
    defaults = inspect.signature(get_class("samtrain.inference.generator.SamAutomaticMaskGenerator")).parameters
    sam = config_of("generator=sam")["generator"]
    for key in sam.keys() - {"_target_", "_partial_", "output_mode"}:
        assert sam[key] == pytest.approx(defaults[key].default), key
    sa1b = config_of("generator=sa1b")["generator"]
    sides = [int(sa1b["points_per_side"] / sa1b["crop_n_points_downscale_factor"] ** layer) for layer in range(3)]
    assert sides == [32, 16, 8] and sum(4**layer * side**2 for layer, side in enumerate(sides)) == 3072
    assert {key for key in sa1b if sa1b[key] != sam[key]} == {
        "crop_n_layers", "crop_n_points_downscale_factor", "min_mask_region_area", "drop_small_masks", "max_mask_area",
    }  # fmt: skip


def test_the_generator_model_is_the_papers() -> None:
    """Appendix B: three layers, four clicks in all, no boxes, large-scale jitter, 177,656 steps."""
    config = experiment_of("generator_model", "paper")
    with torch.device("meta"):
        sam = Sam(sam_config_of(config))
    assert len(sam.mask_decoder.transformer.layers) == 3
    with pytest.raises(ValueError, match="3 .*save_safetensors"):
        save_official(sam, "never_written.pth")
    assert make_prompts(config).box_probability == 0 and make_prompts(config).num_points == 3
    assert config["trainer"]["max_steps"] == 177656 and config["loader"]["large_scale_jitter"] == [0.1, 2.0]
    made = make_sam(experiment_of("generator_model"), model="vit_tiny", init=None)
    assert made.config.decoder_depth == 3


def test_a_decoder_of_another_depth_is_no_continuation(tmp_path: Path) -> None:
    config = experiment_of("generator_model")
    other = save_safetensors(Sam(SAM_CONFIGS["vit_tiny"]), tmp_path / "two_layers.safetensors")
    with pytest.raises(ValueError, match="model.decoder_depth"):
        make_sam(config, model=None, init=other)


def test_prompts_and_loss_are_built() -> None:
    config = config_of("prompts=generator", "scale=paper")
    assert len(make_prompts(config).schedule(seeded_generator("cpu", 0))) == 6  # 4 points, 2 masks alone (appendix B)
    assert make_loss(config).resolution == "input"


@pytest.mark.parametrize("scale", SCALES)
def test_detectors_are_built_and_trained_by_their_keys(scale: str) -> None:
    config = config_of(f"scale={scale}")
    with torch.device("meta"):
        recipe = detector_task.recipe_of(config)
        detector = build_detector(recipe.name, image_size=recipe.image_size)
    assert (detector.config.name, detector.config.image_size) == (
        config["detector"]["name"],
        config["detector"]["image_size"],
    )
    assert set(config["detector"]) == {field.name for field in fields(DetectorRecipe)}
    assert recipe.steps == config["scale"]["detector"]["steps"]
    assert detector_task.options_of(config).checkpoint_every_steps == config["scale"]["checkpoint_every_steps"]


def test_folder_takes_what_preparing_takes() -> None:
    data = config_of("data=folder", "data.root=x")["data"]
    known = {field.name for field in fields(PrepareConfig)}
    assert set(data) - {"kind", "frame", "on_error", "seen_images"} <= known
    defaults = {field.name: field.default for field in fields(PrepareConfig)}
    assert all(data[key] == defaults[key] for key in set(data) & known - {"root"})


def test_loggers_take_their_keys(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    for name in options("logger"):
        loggers_of(config_of(f"logger={name}"), tmp_path)


def test_defaults_of_the_annotator_stand_once() -> None:
    """conf/annotator shows what the code would take anyway, so that no number lives two lives."""
    for node in targets(config_of("scale=paper")["annotator"]):
        parameters = inspect.signature(get_class(node["_target_"])).parameters
        for key, value in node.items():
            if key != "_target_" and not isinstance(value, dict):
                assert value == parameters[key].default, key


@pytest.mark.parametrize("model", sorted(SAM_CONFIGS))
def test_every_model_has_a_recipe(model: str) -> None:
    config = config_of(f"model.name={model}")
    assert isinstance(optimizer_config(config, model, 1e-3), AdamWConfig)


def test_a_model_without_recipe_or_checkpoint_is_refused() -> None:
    config = config_of()
    with pytest.raises(ValueError, match=r"vit_x.*model.name.*\+recipe@recipes.vit_x=vit_b"):
        make_sam(config, model="vit_x", init=None)
    assert config_of("+recipe@recipes.vit_x=vit_b")["recipes"]["vit_x"] == config["recipes"]["vit_b"]
    with pytest.raises(ValueError, match="checkpoint"):
        make_sam(config, model=None, init=None)
    with pytest.raises(ValueError, match="recipes.vit_tiny.mae"):
        make_sam(config | {"model": config["model"] | {"mae": True}}, model="vit_tiny", init=None)


def test_a_new_model_is_a_function_of_the_seed() -> None:
    config = config_of()
    first, again, other = (
        make_sam(config | {"seed": seed}, model="vit_tiny", init=None).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("steps", "wanted", "got"),
    [(90_000, 2_000, 2_000), (80, 100, 80), (435, 260, 435), (401, 20, 21), (401, 300, 401), (202, 20, 21), (7, 3, 4)],
)
def test_the_interval_is_near_what_was_asked_for(steps: int, wanted: int, got: int) -> None:
    assert validation_interval(steps, wanted) == got


def test_a_step_has_to_be_made_of_whole_micro_batches() -> None:
    config = config_of("trainer.images_per_step=6", "loader.batch_size=4")
    with pytest.raises(ValueError, match="trainer.images_per_step"):
        micro_batches(config, "vit_tiny")


# ---- the paper (appendix A; sections 3 and 4)


PAPER = {
    # rate, layer decay, drop path, steps, images a step, milestones (B's and L's are ours, by proportion)
    "vit_h": (8e-4, 0.8, 0.4, 90_000, 256, [60_000, 86_666]),
    "vit_l": (4e-4, 0.8, 0.4, 180_000, 128, [120_000, 173_332]),
    "vit_b": (8e-4, 0.6, 0.6, 180_000, 128, [120_000, 173_332]),
}


@pytest.mark.parametrize("model", PAPER)
def test_recipes_are_the_papers(model: str) -> None:
    rate, layer_decay, drop_path, max_steps, images, milestones = PAPER[model]
    config = experiment_of("sa1b", "paper", f"model.name={model}")
    recipe = config["recipes"][model]
    assert (recipe["drop_path"], recipe["dropout"], recipe["images_per_step"]) == (drop_path, 0.1, images)

    optim = optimizer_config(config, model, recipe["learning_rate"] * config["optim"]["learning_rate_factor"])
    assert (optim.learning_rate, optim.layer_decay, optim.weight_decay) == (rate, layer_decay, 0.1)
    assert (optim.betas, optim.warmup_steps, optim.schedule, optim.gamma) == ((0.9, 0.999), 250, "step", 0.1)
    assert config["trainer"]["max_steps"] is None and optim.max_steps == max_steps  # the recipe's own
    assert run_milestones(optim, optim.max_steps) == milestones
    factors = [rate_factor(optim, step, max_steps) for step in (0, 249, milestones[0], milestones[1], max_steps - 1)]
    assert factors == pytest.approx([1 / 250, 1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("model", PAPER)
def test_rates_fall_with_depth_and_drop_paths_rise(model: str) -> None:
    rate, layer_decay, drop_path, *_ = PAPER[model]
    config = experiment_of("sa1b", "paper", f"model.name={model}")
    with torch.device("meta"):
        sam = Sam(sam_config(model, **{key: config["recipes"][model][key] for key in ("drop_path", "dropout")}))
    depth = len(sam.image_encoder.blocks)
    groups = param_groups(sam, optimizer_config(config, model, rate))
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    names = {name: rates[id(parameter)] for name, parameter in sam.named_parameters()}
    assert names["image_encoder.pos_embed"] == pytest.approx(rate * layer_decay ** (depth + 1))
    for block in range(depth):
        wanted = rate * layer_decay ** (depth - block)
        assert names[f"image_encoder.blocks.{block}.attn.qkv.weight"] == pytest.approx(wanted)
        assert names[f"image_encoder.blocks.{block}.attn.rel_pos_h"] == pytest.approx(wanted)
    for name in ("image_encoder.neck.0.weight", "prompt_encoder.no_mask_embed.weight", "mask_decoder.iou_token.weight"):
        assert names[name] == pytest.approx(rate)
    assert sam.config.drop_path == drop_path


def test_text_prompts_are_trained_as_appendix_d5_says() -> None:
    config = experiment_of("text", "paper")
    assert config["text"]["box_scale"] == [1.0, 2.0] and config["text"]["zero_background"] == 0.5
    assert config["text"]["mask_attention"] is True
    assert config["loader"]["min_mask_area"] == 100 * 100 and config["loader"]["large_scale_jitter"] == [0.1, 2.0]
    assert config["trainer"]["max_steps"] == 120_000 and config["trainer"]["images_per_step"] == 128
    assert config["prompts"]["text_probability"] == 1.0 and config["prompts"]["num_points"] == 8
    assert micro_batches(config, "vit_h") == 1 and config["optim"]["trainable"] is None


def test_interactions_masks_and_precision_are_the_papers() -> None:
    config = experiment_of("sa1b", "paper")
    assert len(make_prompts(config).schedule(seeded_generator("cpu", 0))) == 11
    assert config["prompts"]["box_probability"] == 0.5
    assert config["prompts"]["box_noise_max"] == 20 / 1024
    assert (config["loader"]["max_masks"], config["loader"]["max_mask_area"]) == (64, 0.9)
    assert (config["loss"]["focal_weight"], config["loss"]["dice_weight"], config["loss"]["iou_weight"]) == (20, 1, 1)
    assert (config["trainer"]["precision"], config["trainer"]["gradient_clip_val"]) == ("bf16-mixed", 0.1)
    assert (config["model"]["name"], config["model"]["image_size"], config["model"]["mae"]) == ("vit_h", 1024, True)
    assert config["loader"]["large_scale_jitter"] is None and config["loader"]["flip_probability"] == 0


@pytest.mark.parametrize(("model", "nodes", "accumulate"), [("vit_b", 16, 1), ("vit_h", 16, 2), ("vit_h", 32, 1)])
def test_images_a_step_do_not_hang_on_the_number_of_gpus(model: str, nodes: int, accumulate: int) -> None:
    config = experiment_of("sa1b", "paper", f"model.name={model}", f"trainer.num_nodes={nodes}")
    assert micro_batches(config, model) == accumulate


def test_the_rounds_are_the_papers() -> None:
    config = experiment_of("stage1", "paper")
    rounds = list(config["rounds"].values())
    assert [each["model"] for each in rounds] == ["vit_b", "vit_b", "vit_l", "vit_l", "vit_h", "vit_h"]
    assert sum(each["images"] for each in rounds) == 120_000
    assert config["engine"]["large_scale_jitter"] == [0.1, 2.0]
    assert (config["annotator"]["time_limit"], config["annotator"]["target_iou"]) == (30, 0.9)


def test_manual_masks_are_oversampled_ten_times() -> None:
    data = experiment_of("sa1b", "paper", "data=sa1b_all_stages", *MISSING["data=sa1b_all_stages"])["data"]
    weights = {stage: source["weight"] for stage, source in data["train"].items()}
    assert weights == {"automatic": 1, "manual": 10, "semi_automatic": 10}


@pytest.mark.parametrize("scale", ["laptop", "single_gpu", "paper"])
def test_fine_tuning_validates_several_times(scale: str) -> None:
    """With a single validation at the end, best.ckpt would always be the last."""
    config = experiment_of("finetune", scale)
    steps = config["trainer"]["max_steps"]
    assert steps // validation_interval(steps, config["trainer"]["val_every_steps"]) >= 4
