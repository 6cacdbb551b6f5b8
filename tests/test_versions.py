import platform
from importlib import metadata

from blurify.versions import PACKAGES, version_of, versions


def test_versions():
    assert versions(["torch"]) == {"python": platform.python_version(), "torch": metadata.version("torch")}
    assert list(versions()) == ["python", *PACKAGES]
    assert versions()["python"] == platform.python_version()
    assert version_of("no-such-package-of-ours") is None
