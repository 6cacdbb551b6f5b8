"""Weights from the network: models of the Hugging Face hub; fail fast without a network, and say why in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from blurify.errors import BlurifyError, one_line

_HOSTED = ("hf-hub:", "hf_hub:")
_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
)


def is_hosted(spec: str) -> bool:
    """Whether a spec names a model of the hub: `hf-hub:ORG/NAME`, with `@REVISION` or without."""
    return spec.startswith(_HOSTED)


def fetched(spec: str, *, weights: bool) -> Path:
    """The directory with a model of the hub, from the local cache or downloaded into it.

    Args:
        spec: `hf-hub:ORG/NAME[@REVISION]`.
        weights: False fetches only what says which architecture it is.

    Raises:
        BlurifyError: there is no such model, or it can't be downloaded.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = spec.partition(":")[2].partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII):
        raise BlurifyError(f"{spec} names no model of the hub: write hf-hub:ORG/NAME")
    # torch's own files only where there are no safetensors.
    patterns = list(_FILES if weights else _FILES[:1])
    try:
        with fail_fast(True):
            if weights:
                kept = snapshot_download(name, revision=revision or None, allow_patterns=patterns[:3])
                if any(Path(kept).glob("*.safetensors")):
                    return Path(kept)
            return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # the client of the hub has many classes of errors
        chain = list(_chain(error))
        raise BlurifyError(
            f"{spec} can't be had from the hub ({_cause(chain)}): check the name and the network, or give the "
            "directory with its files"
        ) from error


@contextmanager
def fail_fast(active: bool) -> Iterator[None]:
    """Without a network, look only into the cache: the client of the hub would try for most of a minute, noisily."""
    if not active:
        yield
        return
    import logging
    import socket
    import urllib.parse
    import urllib.request

    from huggingface_hub import constants

    client = logging.getLogger("huggingface_hub")
    level, offline = client.level, constants.HF_HUB_OFFLINE
    url = urllib.parse.urlsplit(constants.ENDPOINT)
    reason: OSError | None = None
    if not offline and not urllib.request.getproxies():  # behind a proxy, names are resolved there
        try:
            socket.getaddrinfo(url.hostname, url.port or 443)
        except OSError as error:
            reason = error
            constants.HF_HUB_OFFLINE = True
    client.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as error:
        if reason is None:
            raise
        raise reason from error
    finally:
        client.setLevel(level)
        constants.HF_HUB_OFFLINE = offline


@contextmanager
def factory_errors(spec: str, pretrained: bool) -> Iterator[None]:
    """Whatever a factory raises, as a BlurifyError that says whether the network or the factory is to blame."""
    try:
        yield
    except BlurifyError:
        raise
    except Exception as error:
        chain = list(_chain(error))
        if pretrained and any(_is_network(link) for link in chain):
            raise BlurifyError(
                f"the pretrained weights of {spec} can't be downloaded ({_cause(chain)}): use --random for random "
                f"weights, or " + own_file(spec)
            ) from error
        raise BlurifyError(f"{spec} can't be built: {one_line(error)}") from error


def own_file(spec: str) -> str:
    """What to do instead of downloading weights, for the end of a message."""
    return f"give a checkpoint file with --arch {spec.partition(':')[0] if spec.startswith('torchvision/') else spec}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_network(error: BaseException) -> bool:
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or package in (
        "urllib", "urllib3", "http", "requests", "httpx", "httpcore", "huggingface_hub", "socket", "ssl"
    )  # fmt: skip


def _cause(chain: Sequence[BaseException]) -> str:
    """The innermost reason, which is the short one ('Name or service not known')."""
    texts = [one_line(error.strerror if isinstance(error, OSError) and error.strerror else error) for error in chain]
    return min((text for text in texts if text), key=len, default="no network")[:160]
