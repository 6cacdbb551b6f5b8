"""`transformers/CLASS`: a model of Hugging Face's transformers, by its class and its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from blurify.errors import BlurifyError, one_line
from blurify.files.sources.configs import transformers_arguments

if TYPE_CHECKING:
    from torch import nn


def build_transformers(spec: str, config: Mapping[str, Any]) -> nn.Module:
    """The model with random weights; nothing is fetched, and no code but the library's runs.

    Args:
        spec: `transformers/CLASS`.
        config: of which only what describes the model is used.

    Raises:
        BlurifyError: the library is missing or has no such class, or the configuration doesn't fit it.
    """
    try:
        import transformers
    except ImportError as error:
        raise BlurifyError(f"{spec} is a model of transformers: pip install transformers") from error
    name = spec.removeprefix("transformers/")
    cls: Any = getattr(transformers, name, None)
    home = getattr(cls, "__module__", "")
    if not (
        isinstance(cls, type)
        and issubclass(cls, transformers.PreTrainedModel)
        and home.startswith("transformers.models.")
        and getattr(cls, "config_class", None) is not None
    ):
        raise BlurifyError(f"transformers {transformers.__version__} has no model {name!r}")
    arguments = transformers_arguments(config, spec)
    try:
        settings: Any = cls.config_class
        model: nn.Module = cls(settings.from_dict(arguments))
    except Exception as error:  # whatever the library says of a configuration
        raise BlurifyError(f"{spec} can't be built from its config.json: {one_line(error)}") from error
    return model
