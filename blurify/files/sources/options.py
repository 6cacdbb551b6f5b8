"""The options of a factory, as in `timm/resnet18?num_classes=10&in_chans=1`."""

from __future__ import annotations

from typing import Any

from blurify.errors import BlurifyError


def parse_options(spec: str, query: str) -> dict[str, Any]:
    """`num_classes=10&in_chans=1` as keyword arguments: ints, floats, true / false / none, else strings.

    Raises:
        BlurifyError: something in the query is no option, or one that is chosen elsewhere.
    """
    options: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, equals, text = item.partition("=")
        if not equals or not key.isidentifier():
            raise BlurifyError(f"{item!r} in {spec!r} is no option: write ?num_classes=10&in_chans=1")
        if key in ("pretrained", "checkpoint_path", "weights", "weights_backbone", "cache_dir"):
            raise BlurifyError(
                f"{key} in {spec!r} can't be set there: weights are chosen by the name, --random, or a file"
            )
        options[key] = _value(text)
    return options


_BY_A_FILE = frozenset(
    "num_classes in_chans img_size input_size patch_size global_pool output_stride drop_rate drop_path_rate "
    "drop_block_rate attn_drop_rate proj_drop_rate features_only out_indices class_token no_embed_class reg_tokens "
    "dynamic_img_size dynamic_img_pad aux_logits aux_loss transform_input init_weights dropout progress "
    "num_keypoints".split()
)
_LARGEST = 200_000  # classes, pixels, channels


def odd_option(spec: str) -> str | None:
    """The first option of a factory spec that a file may not choose: one that is not about the sizes of a model."""
    for key, value in parse_options(spec, spec.partition("?")[2]).items():
        large = isinstance(value, int | float) and not abs(value) <= _LARGEST  # nan, too
        if key not in _BY_A_FILE or large or (isinstance(value, str) and not value.isalnum()):
            return key
    return None


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
