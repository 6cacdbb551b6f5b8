"""Which sites of a trained network to convert, where its weights can't be adapted: by unlabelled pictures."""

from __future__ import annotations

from torch import nn

from blurify import conversion
from blurify.errors import BlurifyError
from blurify.graph.copies import sharing_copy
from blurify.metrics.agreement import agreements
from blurify.metrics.aliasing import aliasing
from blurify.metrics.results import SiteAliasing
from blurify.metrics.subject import Pictures, Subject, Watch
from blurify.metrics.trade_off import RankedSite, Ranking, Step, without
from blurify.spec.kinds import RULES
from blurify.spec.recipes import Recipe, load_recipe
from blurify.surgery.carrying import plan_of

__all__ = ["RankedSite", "Ranking", "Step", "rank_sites"]

ALIASING_IMAGES = 32  # shares of energy differ little from picture to picture


def rank_sites(
    original: Subject,
    recipe: str | Recipe | None,
    pictures: Pictures,
    *,
    batch_size: int = 32,
    aliasing_images: int = ALIASING_IMAGES,
    watch: Watch | None = None,
) -> Ranking:
    """Rank the sites that a recipe converts by what is lost of the model's answers for each bit of aliasing removed.

    Each site is converted alone, with the weights as they are. What that costs is the model's agreement with the
    original on the pictures (KL of a classifier's answers, the relative error of other outputs, see `agreement`); what
    it buys is by how much the share of energy above the new Nyquist frequency at that site falls (see `aliasing`). The
    sites are put in the order of cost over gain, and then converted cumulatively: that curve is measured, not added up
    from single sites, as costs do not add. It need not fall at every step: the branches of a residual block, for one,
    fit together again once an even filter shifts both by half a sample.

    No weights are copied: the conversions, two a site, share the original's.

    Args:
        original: a model that is not converted, of any outputs that `agreement` compares.
        recipe: the conversion of which sites are to be left out.
        pictures: unlabelled; some 100 tell 90% from 84% and 94% (95% interval).
        batch_size: pictures a forward.
        aliasing_images: how many of them the aliasing is measured on; dense versions take time.
        watch: told of the progress: the sites alone, their aliasing, and the curve.

    Returns:
        The ranking; its `choose(keep=0.9)` gives the recipe that keeps 90% of the answers.

    Raises:
        BlurifyError: the model is converted, or the recipe converts nothing; and all that `agreement` and `aliasing`
            refuse.
    """
    wanted = load_recipe(recipe)
    if plan_of(original.model) is not None:
        raise BlurifyError(f"{original.name} is converted already: rank the sites of the original (blurify revert)")
    geometry = original.preprocessing
    example = (original.example(),)
    sites = conversion.inspect(original.model, example, wanted).converted
    if not sites:
        raise BlurifyError(f"the recipe {wanted.name} converts no site of {original.name}: there is nothing to rank")
    resampled = next((site.name for site in sites if site.rule in RULES), None)
    if resampled is not None:
        raise BlurifyError(
            f"the recipe {wanted.name} also filters what resamples without a stride ({resampled}), of which no "
            "aliasing is measured: rank the sites of a recipe without [resampling], such as zhang2019"
        )
    names = [site.name for site in sites]

    def only(kept: list[str]) -> Subject:
        recipe = without(wanted, [name for name in names if name not in kept])
        model: nn.Module = conversion.convert(
            sharing_copy(original.model), recipe, example_inputs=example, inplace=True, verify=False
        )
        return Subject(model, geometry, f"{original.name} converted")

    alone = {name: only([name]) for name in names}
    agreed = dict(zip(names, agreements(original, list(alone.values()), pictures, batch_size=batch_size, watch=watch),
                      strict=True))  # fmt: skip

    def shares(subject: Subject, measured: list[str]) -> dict[str, SiteAliasing]:
        found = aliasing(
            subject, pictures, batch_size=min(batch_size, 16), images=min(aliasing_images, len(pictures)),
            only=measured, watch=watch,
        )  # fmt: skip
        return {site.site: site for site in found.sites}

    before = shares(original, names)
    after = {name: shares(subject, [name])[name] for name, subject in alone.items()}
    ranked = sorted(
        (
            RankedSite(site.name, site.kind, agreed[site.name], before[site.name].share, after[site.name].share)
            for site in sites
        ),
        key=lambda site: site.price,  # a stable sort: equal ones keep their order in the network
    )
    order = [site.site for site in ranked]
    steps = [alone[order[0]], *(only(order[:count]) for count in range(2, len(order) + 1))]
    total = sum(site.before.value for site in ranked)
    curve = [
        Step(count, agreed_here, sum(site.removed for site in ranked[:count]) / total if total > 0 else 0.0)
        for count, agreed_here in enumerate(
            agreements(original, steps, pictures, batch_size=batch_size, watch=watch), 1
        )
    ]
    return Ranking(
        original.name, pictures.name, wanted, tuple(ranked), tuple(curve), min(aliasing_images, len(pictures))
    )
