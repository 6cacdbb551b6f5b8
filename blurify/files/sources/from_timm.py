"""`timm/NAME[.TAG]`, also `timm/hf-hub:ORG/NAME` and `timm/local-dir:PATH`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from blurify.errors import BlurifyError
from blurify.files.sources.configs import timm_arguments
from blurify.files.sources.hub import factory_errors, fail_fast, own_file
from blurify.spec.words import did_you_mean, nearest

if TYPE_CHECKING:
    from torch import nn


def build_timm(
    spec: str, name: str, options: dict[str, Any], *, pretrained: bool, config: Mapping[str, Any] | None = None
) -> tuple[nn.Module, str]:
    """The model of timm, and its name with the tag of the weights that were taken.

    Args:
        spec: what the user wrote, for messages.
        name: the name, with the tag of the weights or without.
        options: of the factory.
        pretrained: with the weights.
        config: what a config.json said: 'arguments' (options win over them), and 'pretrained_cfg', which says how
            pictures become inputs.

    Raises:
        BlurifyError: there is no such model, it has no such weights, or they can't be downloaded.
    """
    import timm
    from timm.models import get_arch_pretrained_cfgs, is_model, is_model_pretrained, split_model_name_tag

    hosted = ":" in name  # hf-hub:org/name, local-dir:path
    if not hosted:
        arch, tag = split_model_name_tag(name)
        if not is_model(arch):
            raise BlurifyError(f"timm {timm.__version__} has no {arch!r}{_guess(arch, timm.list_models())}")
        tagged = list(get_arch_pretrained_cfgs(arch))
        if tag and tagged and name not in tagged and tag not in tagged:
            raise BlurifyError(f"timm's {arch} has no weights {tag!r}{_guess(name, tagged)}")
        if pretrained and not is_model_pretrained(name):
            raise BlurifyError(
                f"timm has no pretrained weights for {name}: use --random for random ones, or {own_file(spec)}"
            )
    if config is not None:
        options = {**timm_arguments(config.get("arguments") or {}, spec), **options}
    with factory_errors(spec, pretrained), fail_fast(pretrained):
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    described = config.get("pretrained_cfg") if config is not None else None
    own: Any = getattr(model, "pretrained_cfg", None)
    if isinstance(described, dict) and isinstance(own, dict):
        own.update(described)  # also known as the model's default_cfg
    tag = "" if hosted or not pretrained else (getattr(model, "pretrained_cfg", None) or {}).get("tag", "")
    return model, f"{name}.{tag}" if tag and "." not in name else name


def _guess(name: str, known: list[str]) -> str:
    return did_you_mean(f"timm/{match}" for match in nearest(name, known))
