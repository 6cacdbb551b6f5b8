"""Weights from the network: fail fast without one, and say in one line why they can't be had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from blurify.errors import BlurifyError, one_line


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
