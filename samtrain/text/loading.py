"""Loads a CLIP from local files, in open_clip's or Hugging Face's format, without a network and without running code."""

from __future__ import annotations

import json
import logging
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samtrain.files import write_bytes, write_text
from samtrain.text.clip import Clip
from samtrain.text.hugging_face import is_hugging_face, to_open_clip

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
LOCAL_DIR = "local-dir:"
CURE = "free some disk space, or choose another run_dir"


def load_clip(
    path: str | Path, *, name: str | None = None, quick_gelu: bool | None = None, mask_attention: bool = True
) -> Clip:
    """Loads a CLIP that lies on this machine.

    Args:
        path: a folder with open_clip_config.json and weights, also written local-dir:FOLDER; a folder that transformers wrote
            of a CLIPModel; or a file of weights (.safetensors, or a state_dict in .pt), together with `name`.
        name: open_clip's name of the model that a file of weights belongs to, such as "ViT-L-14-336-quickgelu".
        quick_gelu: whether a file of weights was trained with QuickGELU, as OpenAI's were; None takes what `name` says.
        mask_attention: see `Clip`.

    Returns:
        The CLIP on the CPU, in float32 and evaluation mode; its parameters are frozen.

    Raises:
        ValueError: for a file that is missing, would run code, or does not fit the name, and where nothing says if the weights
            were trained with QuickGELU.
    """
    folder = Path(str(path).removeprefix(LOCAL_DIR)).expanduser()
    if not folder.exists():
        raise ValueError(f"there is no file or folder {folder} (clip): set the path of a CLIP on this machine")
    with _quiet():
        if folder.is_dir():
            model, tokenize = _from_folder(folder)
        else:
            model, tokenize = _from_file(folder, name, quick_gelu)
    clip = Clip(model.float(), tokenize, mask_attention=mask_attention)
    return clip.requires_grad_(False).eval()


def clip_files(path: str) -> list[str]:
    """Returns the files that a CLIP is loaded from, those of a folder in the order of their names."""
    place = Path(path.removeprefix(LOCAL_DIR)).expanduser()
    return sorted(str(file) for file in place.iterdir() if file.is_file()) if place.is_dir() else [str(place)]


def new_clip(config: dict[str, Any]) -> Clip:
    """Returns a CLIP with random weights; `config` is the model_cfg of open_clip_config.json."""
    open_clip = import_open_clip()
    return Clip(open_clip.CLIP(**config), _simple_tokenizer(config))


def save_clip(clip: Clip, config: dict[str, Any], folder: Path) -> Path:
    """Writes a CLIP as the folder that `load_clip` and open_clip's local-dir: read; returns the folder."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in clip.model.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(state, metadata={"format": "pt"}), CURE)
    write_text(folder / CONFIG, json.dumps({"model_cfg": config}, indent=1) + "\n")
    return folder


def import_open_clip() -> Any:
    """Returns the package; raises ValueError that says how to install it."""
    try:
        import open_clip
    except ImportError as error:
        raise ValueError("text prompts need open_clip (clip): pip install 'samtrain[text]'") from error
    return open_clip


def _from_folder(folder: Path) -> tuple[nn.Module, Any]:
    """Returns the model in a folder and its tokenizer."""
    open_clip = import_open_clip()
    if (folder / CONFIG).is_file():
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config = config.get("model_cfg", config)
        _check_runs_no_code(config, folder)
        for file in folder.iterdir():
            _check_plain_weights(file)
        try:
            model = open_clip.create_model(f"{LOCAL_DIR}{folder}", pretrained_hf=False, pretrained_image=False)
            return model, open_clip.get_tokenizer(f"{LOCAL_DIR}{folder}")
        except (RuntimeError, OSError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(f"{folder} cannot be loaded as a CLIP (clip): {_first_line(error)}") from error
    if is_hugging_face(folder):
        config, state = to_open_clip(folder, _read_weights)
        model = open_clip.CLIP(**config)
        _fill(model, state, folder)
        return model, _simple_tokenizer(config)
    raise ValueError(
        f"{folder} has neither {CONFIG} nor the config.json of a CLIPModel (clip): give a folder that open_clip or "
        "transformers wrote, or a file of weights and text.clip_name"
    )


def _from_file(path: Path, name: str | None, quick_gelu: bool | None) -> tuple[nn.Module, Any]:
    """Returns the model of this name with the weights of a file, and its tokenizer."""
    open_clip = import_open_clip()
    if name is None:
        raise ValueError(
            f"{path} is a file of weights, which does not say what model it belongs to (clip): set text.clip_name, for example "
            "text.clip_name=ViT-L-14-336-quickgelu"
        )
    config = open_clip.get_model_config(name) if ":" not in name else None
    if config is None:
        raise ValueError(
            f"text.clip_name is {name!r}, which open_clip does not know: python -c 'import open_clip; "
            "print(open_clip.list_models())' lists its names"
        )
    quick_gelu = _quick_gelu(open_clip, name, bool(config.get("quick_gelu")), quick_gelu)
    model = open_clip.create_model(name, force_quick_gelu=quick_gelu, pretrained_hf=False, pretrained_image=False)
    state = _read_weights(path)
    _fill(model, state, path)
    return model, open_clip.get_tokenizer(name)


def _quick_gelu(open_clip: Any, name: str, named: bool, asked: bool | None) -> bool:
    """Returns whether the model uses QuickGELU; raises ValueError where the name and the setting differ or nothing says so.

    No tensor shows it, and a wrong choice gives embeddings that are only slightly wrong, so that nobody would notice.
    """
    if asked is not None and named and not asked:
        raise ValueError(
            f"text.clip_name is {name}, a model with QuickGELU, and text.quick_gelu is false: set text.quick_gelu=null, or "
            "the name without -quickgelu"
        )
    if asked is None and not named and f"{name}-quickgelu" in open_clip.list_models():
        raise ValueError(
            f"text.clip_name is {name}, and nothing says whether the weights were trained with QuickGELU: for those of OpenAI, "
            f"which were, set text.clip_name={name}-quickgelu; for others, which were not, set text.quick_gelu=false"
        )
    return named or bool(asked)


def _fill(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Loads the tensors into the model; raises ValueError that lists what does not fit."""
    wanted = model.state_dict()
    missing, unexpected = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    shapes = [key for key in wanted if key in state and state[key].numel() != wanted[key].numel()]
    if missing or unexpected or shapes:
        parts = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
        found = "; ".join(f"{what}: {', '.join(keys[:5])}" for what, keys in parts.items() if keys)
        raise ValueError(f"{path} does not fit the model (clip): {found}. Set text.clip_name to the model that it belongs to")
    model.load_state_dict({key: state[key].float().view(wanted[key].shape) for key in wanted})


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file; raises ValueError for one that would run code, and for a TorchScript archive."""
    _check_plain_weights(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was refused and nothing in it was executed (clip): it holds more than tensors. Where you trust it, save "
            "model.state_dict() alone, or safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as weights (clip): {_first_line(error)}") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    state = {str(key).removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no tensors (clip): give a file that holds a CLIP's state_dict")
    return state


def _check_plain_weights(path: Path) -> None:
    """Raises ValueError for a TorchScript archive, which is a program; OpenAI published its weights in this form."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        is_script = any(name.endswith("constants.pkl") or "/code/" in name for name in archive.namelist())
    if is_script:
        raise ValueError(
            f"{path} is a TorchScript archive, a program that would run on loading (clip). If you trust it, as you may trust "
            "OpenAI's own files, convert it once:\n"
            f"""  python -c "import open_clip, torch; model = open_clip.load_openai_model('{path}', device='cpu'); """
            """torch.save(model.state_dict(), 'clip.pt')"\n"""
            "and set clip=clip.pt and the model's name with -quickgelu: text.clip_name=ViT-L-14-336-quickgelu"
        )


def _check_runs_no_code(config: dict[str, Any], folder: Path) -> None:
    """Raises ValueError for a config that makes transformers run the code of a repository."""
    if "trust_remote_code" in json.dumps(config):
        raise ValueError(f"{folder / CONFIG} asks for trust_remote_code (clip), which would run code of others: remove it")


def _simple_tokenizer(model_cfg: dict[str, Any]) -> Any:
    """Returns the tokenizer of OpenAI's CLIP, for sentences of the model's length."""
    return import_open_clip().SimpleTokenizer(context_length=model_cfg["text_cfg"].get("context_length", 77))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what open_clip says about each of its steps out of the log."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.INFO))
    try:
        yield
    finally:
        logging.disable(level)
