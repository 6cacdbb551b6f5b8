"""Everything that a report shows besides figures, in one go: each part that a model allows, and why not the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from blurify.errors import BlurifyError
from blurify.metrics.agreement import agreements
from blurify.metrics.aliasing import signals_at
from blurify.metrics.evidence import FORMAT, Evidence, SiteSpectra, Spectrum
from blurify.metrics.flips import flips
from blurify.metrics.keeping import subject_identity
from blurify.metrics.kept import Kept, anew_where_damaged, steps_for
from blurify.metrics.latency import latency
from blurify.metrics.pictures import some_of, spread_choice
from blurify.metrics.results import Measurement
from blurify.metrics.shift_curves import path_for, shift_curves, walk
from blurify.metrics.site_features import site_features
from blurify.metrics.spectra import edges_for, spectrum
from blurify.metrics.subject import Pictures, Subject, Watch, middle
from blurify.metrics.thumbnails import name_of
from blurify.spec.plan import Plan

IMAGES = 16
"""Pictures that shift; the first of them are those that features and spectra are of."""
PARTS = ("flips", "curves", "features", "spectra", "latency")
_SPECTRA = 8 * 224 * 224  # pixels: what enters a site is many times as large
_BATCH = 16


def gather(
    subjects: Sequence[Subject],
    pictures: Pictures,
    *,
    measurements: Sequence[Measurement] = (),
    plan: Plan | None = None,
    classes: Sequence[str] = (),
    images: int = IMAGES,
    seed: int = 0,
    batch_size: int = 64,
    circular: bool = False,
    shown: bool = True,
    timed: bool = True,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> Evidence:
    """What a report shows besides figures.

    Args:
        subjects: one to three models, the original first.
        pictures: that the figures are of; some of them are shown.
        measurements: of the models; their aliasing says which site is the worst.
        plan: of the conversion.
        classes: names of the classes; () where they have none.
        images: pictures that shift.
        seed: of the choice of pictures.
        batch_size: pictures a forward.
        circular: shift around instead of cropping elsewhere.
        shown: embed pictures; else only what was answered.
        timed: measure the latency too.
        watch: told of the progress.
        kept: of one of the models: where each part is written down (see `kept`).

    Returns:
        what could be had; `missing` says why the rest could not.
    """
    return anew_where_damaged(
        kept,
        lambda: _gathered(
            subjects, pictures, measurements=measurements, plan=plan, classes=classes, images=images, seed=seed,
            batch_size=batch_size, circular=circular, shown=shown, timed=timed, watch=watch, kept=kept,
        ),
    )  # fmt: skip


def _gathered(
    subjects: Sequence[Subject], pictures: Pictures, *, measurements: Sequence[Measurement], plan: Plan | None,
    classes: Sequence[str], images: int, seed: int, batch_size: int, circular: bool, shown: bool, timed: bool,
    watch: Watch | None, kept: Kept | None,
) -> Evidence:  # fmt: skip
    chosen = spread_choice(len(pictures), images, seed)
    few = _few(pictures, images, seed)
    if few.ndim != 4:
        return Evidence(missing=dict.fromkeys(PARTS, "it is shown of pictures only"))
    names = [name_of(pictures, index) for index in chosen]
    geometry = subjects[0].preprocessing
    shown = shown and min(geometry.crop) > 1  # a signal is no picture to look at
    site = worst_site(measurements, plan)
    steps = steps_for(
        kept, "evidence", 1, models=[] if kept is None else [subject_identity(subject) for subject in subjects],
        images=images, seed=seed, batch_size=batch_size, circular=circular, shown=shown, classes=list(classes),
        site=site, names=[subject.name for subject in subjects],
    )  # fmt: skip
    parts: dict[str, Any] = {}
    missing: dict[str, str] = {}

    def attempt(fields: Sequence[str], make: Callable[[], dict[str, Any]]) -> None:
        """Make fields of the evidence, or say why they can't be made; what is known is not made again."""

        def plain() -> dict[str, Any]:
            try:
                made = Evidence(**make()).to_dict()
            except BlurifyError as error:
                return {"missing": dict.fromkeys(fields, str(error))}
            return {field: made[field] for field in fields} | {"missing": {}}

        told = steps.part(0, " ".join(fields), plain)
        missing.update(told["missing"])
        parts.update({field: told[field] for field in fields if field in told})

    def walked() -> dict[str, Any]:
        path = path_for(geometry, circular=circular)
        walks = [walk(subject, few, path, batch_size=min(batch_size, _BATCH), watch=watch) for subject in subjects]
        return {
            "flips": flips(walks, few, path, geometry, names, classes, pictures=shown),
            "curves": shift_curves(walks, few, path, geometry, names, classes, pictures=shown),
        }

    attempt(("flips", "curves"), walked)
    # A measurement may know already, and then on all pictures.
    known = [getattr(measured, "agreement", None) for measured in measurements[1:]]
    if len(subjects) > 1 and not all(known):

        def agreed() -> dict[str, Any]:
            found = agreements(
                subjects[0], subjects[1:], pictures, batch_size=batch_size, watch=watch,
                kept=None if kept is None else kept.under(evidence=True),
            )  # fmt: skip
            return {"agreements": tuple(found)}

        attempt(("agreements",), agreed)
    if site is None:
        missing["features"] = missing["spectra"] = "no site was measured"
    else:
        seen = middle(few, geometry.crop)
        some = seen[: max(min(_SPECTRA // math.prod(geometry.crop), 8), 1)]
        attempt(("spectra",), lambda: {"spectra": _spectra(subjects, some, site)})
        attempt(("features",), lambda: {"features": site_features(subjects, seen[:1], site, names[0], pictures=shown)})
    if timed:
        attempt(("latency",), lambda: {"latency": latency(subjects, watch=watch)})
    try:
        return Evidence.from_dict({"format": FORMAT, **parts, "missing": missing})
    except BlurifyError as error:  # a line that was written by somebody else
        raise ValueError(str(error)) from error


def count_classes(subject: Subject) -> int:
    """How many classes a model tells apart, by one black picture. Raises BlurifyError where it gives something else."""
    geometry = subject.preprocessing
    return subject(torch.zeros(1, geometry.channels, *geometry.crop)).shape[1]


def worst_site(measurements: Sequence[Measurement], plan: Plan | None) -> str | None:
    """The site that aliases most in the first model, of those that the plan blurs; of all, where it blurs none.

    Global pools don't count: they leave nothing that could alias. Where aliasing was not measured, the first that the
    plan blurs.
    """
    void = {site.name for site in plan.sites if site.rule == "global-pool"} if plan is not None else set()
    blurred = [site.name for site in plan.converted] if plan is not None else []
    measured = measurements[0].aliasing if measurements else None
    if measured is None:
        return blurred[0] if blurred else None
    sites = [site for site in measured.sites if site.site not in void]
    sites = [site for site in sites if site.site in blurred] or sites
    return max(sites, key=lambda site: site.share.value).site if sites else None


def _few(pictures: Pictures, images: int, seed: int) -> torch.Tensor:
    """Some pictures, in memory: (N, C, H, W) in 0..1."""
    return torch.cat([batch.canvases for batch in some_of(pictures, images, seed).batches(_BATCH)])


def _spectra(subjects: Sequence[Subject], seen: torch.Tensor, site: str) -> SiteSpectra:
    edges: tuple[float, ...] = ()
    stride: tuple[int, ...] = ()
    models: list[Spectrum | None] = []
    for subject in subjects:
        found = signals_at(subject, seen, site)
        if found is None:
            models.append(None)
            continue
        signal, stride = found
        edges = edges or edges_for(tuple(signal.shape[2:]), stride)
        models.append(spectrum(signal, stride, edges))
    if not edges:
        raise BlurifyError(f"no model has the site {site} at this size")
    return SiteSpectra(site, stride, edges, len(seen), tuple(models))
