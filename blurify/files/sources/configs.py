"""`config.json` beside the weights of a model: which architecture it is, and with what arguments.

It comes with the weights, from somebody else. What a library does with an argument is its own affair: some are names of
files to load or of code to fetch. So only what describes the size and shape of a model is handed on: numbers, plain
words, and lists and dictionaries of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blurify.errors import BlurifyError, one_line

CONFIG = "config.json"
_WORD = re.compile(r"[A-Za-z0-9_.+-]{0,100}", re.ASCII)
_LARGEST = 2**31
_DEEPEST = 8
# Of a timm model's `pretrained_cfg`: how pictures become inputs, and what the answers are called.
_TIMM_DATA = frozenset(
    "input_size test_input_size min_input_size fixed_input_size interpolation crop_pct test_crop_pct crop_mode mean "
    "std pool_size num_classes first_conv classifier tag label_names label_descriptions".split()
)
_TIMM_CHOSEN = frozenset(
    "pretrained checkpoint_path cache_dir pretrained_cfg pretrained_cfg_overlay scriptable exportable".split()
)
# Words for people, and settings of libraries that are nothing of the model.
_TRANSFORMERS_LEFT = frozenset(
    "_name_or_path name_or_path transformers_version id2label label2id torch_dtype dtype architectures "
    "_commit_hash _attn_implementation attn_implementation _attn_implementation_internal finetuning_task "
    "problem_type license tokenizer_class blurify".split()
)
_TRANSFORMERS_CODE = frozenset("auto_map quantization_config custom_pipelines trust_remote_code".split())


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a directory; empty where it has none.

    Raises:
        BlurifyError: it is no JSON dictionary.
    """
    file = path / CONFIG
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise BlurifyError(f"{file} can't be read ({one_line(error)})") from error
    if not isinstance(found, dict):
        raise BlurifyError(f"{file} is no dictionary: it doesn't say what the model is; give --arch")
    return found


def beside(path: Path) -> tuple[str, dict[str, Any]] | None:
    """What the config.json of the directory in which a file is says that it is, if it says something."""
    return architecture_of(read_config(path.parent), str(path.parent / CONFIG))


def architecture_of(config: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]] | None:
    """Which architecture a config.json means, and what goes with its name.

    Args:
        config: the content of the file.
        where: what it is called in messages.

    Returns:
        A spec for `sources.build`, and its `config`; None where the file doesn't say.

    Raises:
        BlurifyError: it asks for code, or for arguments that a file may not choose.
    """
    if isinstance(name := config.get("architecture"), str):
        if not _WORD.fullmatch(name):
            raise BlurifyError(f"{where} names an architecture {name[:80]!r}, which is none of timm: give --arch")
        arguments = {**_dictionary(config.get("model_args"))}
        if "num_classes" not in arguments and isinstance(config.get("num_classes"), int):
            arguments["num_classes"] = config["num_classes"]
        described = _dictionary(config.get("pretrained_cfg"))
        data = {key: value for key, value in described.items() if key in _TIMM_DATA}
        found = {"arguments": timm_arguments(arguments, where), "pretrained_cfg": data}
        return f"timm/{name}", json.loads(json.dumps(found))
    names = config.get("architectures")
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) and names[0].isidentifier():
        return f"transformers/{names[0]}", transformers_arguments(config, where)
    return None


def timm_arguments(arguments: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Those arguments of `timm.create_model` that a file may choose.

    Raises:
        BlurifyError: another one is among them.
    """
    for key, value in arguments.items():
        if key in _TIMM_CHOSEN or not _is_plain(value):
            raise BlurifyError(f"{where} sets {key[:80]!r}, which a file may not set: give --arch with what you need")
    return dict(arguments)


def transformers_arguments(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What of a configuration of transformers describes the model.

    Raises:
        BlurifyError: it asks for code of its own, or for something that is fetched or read.
    """
    for key, value in config.items():
        if key in _TRANSFORMERS_CODE and value is not None:
            raise BlurifyError(
                f"{where} asks for {key}: such a model is built by code or kernels that come with it; load it in "
                "Python, and give blurify.convert the model"
            )
    kept = {key: value for key, value in config.items() if key not in _TRANSFORMERS_LEFT | _TRANSFORMERS_CODE}
    labels = config.get("id2label")
    if isinstance(labels, dict) and "num_labels" not in kept:
        kept["num_labels"] = len(labels)
    for key, value in kept.items():
        if not _is_plain(value):
            raise BlurifyError(
                f"{where} sets {key[:80]!r} to what a file may not choose: load the model in Python, and give "
                "blurify.convert the model"
            )
    for key in ("use_pretrained_backbone", "pretrained_backbone"):
        if kept.get(key):
            kept[key] = False  # the weights are in the file
    found: dict[str, Any] = json.loads(json.dumps(kept))
    return found


def _dictionary(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_plain(value: Any, depth: int = 0) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return abs(value) <= _LARGEST  # never nan
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    if depth > _DEEPEST:
        return False
    if isinstance(value, list):
        return all(_is_plain(one, depth + 1) for one in value)
    return isinstance(value, dict) and all(
        _WORD.fullmatch(str(key)) is not None and _is_plain(one, depth + 1) for key, one in value.items()
    )
