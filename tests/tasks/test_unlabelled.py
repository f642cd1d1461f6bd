"""Images without masks: who may annotate them, and what they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from samtrain.data.image_set import records
from samtrain.run.image_sets import open_set
from samtrain.tasks import resolve
from samtrain.tasks.rounds.unlabelled import by_people, check_validation, drawn_by_people, with_own_sets, with_unlabelled

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of different colours, and nothing else."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(10):
        pixels = np.full((12, 16, 3), 20 * number, np.uint8)
        pixels[:6] = 255 - 10 * number
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def config_of(folder: Path, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        data = ["data=folder", f"data.root={folder}", f"data_dir={folder.parent / 'shards'}"]
        return resolve(compose("config", overrides=["+experiment=stage1", *data, *overrides]))


def test_people_get_shards_without_masks_and_shares_of_their_own(folder: Path) -> None:
    config = with_unlabelled(config_of(folder, "annotator=web", "annotate.val=0.2", "annotate.test=0.3"))
    assert by_people(config) and config["data"]["form"] == "unlabelled" and drawn_by_people(config) == ["val", "test"]
    images = open_set(config["data"], config["data_dir"])
    assert [len(list(records(tars))) for tars in (images.pool_tars(), images.val, images.test)] == [5, 2, 3]
    assert not any(record.annotation["annotations"] for record in records(images.pool_tars()))


def test_the_simulated_annotator_says_what_is_missing_and_names_both_cures(folder: Path) -> None:
    for overrides in ((), ("data.form=unlabelled",)):
        with pytest.raises(ValueError, match=r"have no masks.*annotator=web, or say where their masks are \(data.form"):
            with_unlabelled(config_of(folder, *overrides))
    config = config_of(folder)
    with pytest.raises(ValueError, match=r"have no masks.*data.masks, for COCO.*annotator=web"):
        open_set(config["data"], config["data_dir"])


def test_own_sets_replace_the_shares(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "val.tar").touch()
    config = with_unlabelled(config_of(folder, "annotator=web", f"annotate.val={tmp_path / 'val.tar'}", "annotate.test=0"))
    images = with_own_sets(config, open_set(config["data"], config["data_dir"]))
    assert images.val == [str(tmp_path / "val.tar")] and drawn_by_people(config) == ["test"] and not images.test


def test_without_validation_people_are_told_and_a_simulation_is_refused(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = with_unlabelled(config_of(folder, "annotator=web", "annotate.val=0", "annotate.test=0"))
    images = open_set(config["data"], config["data_dir"])
    check_validation(config, images)
    assert "nothing is measured" in caplog.text
    with pytest.raises(ValueError, match=r"set data.val"):
        check_validation({**config, "annotator": config_of(folder)["annotator"]}, images)
