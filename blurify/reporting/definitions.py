"""What each figure means and where it comes from, in the words of the page."""

from __future__ import annotations

from dataclasses import dataclass

from blurify.reporting.content import Report, agreement_of

_ZHANG = "Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019"
_AZULAY = (
    "Azulay and Weiss, Why do deep convolutional networks generalize so poorly to small image transformations?, 2018"
)
_HENDRYCKS = (
    "Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, "
    "ICLR 2019"
)
_ENGSTROM = "Engstrom et al., Exploring the Landscape of Spatial Robustness, arXiv 1712.02779, 2018"


@dataclass(frozen=True)
class Definition:
    """One figure.

    Attributes:
        part: the part of a measurement that holds it; 'plan' for the table of sites, 'ranking' for their ranking,
            'pareto' for the table of partial conversions, 'adapted' for the stages of adapting, 'pair' for what a page
            of several measurements has, '' for what every page has; a part of the evidence by its own name.
        name: what the page calls it.
        text: what it is.
        source: who defined it.
    """

    part: str
    name: str
    text: str
    source: str


_DEFINITIONS = (
    Definition(
        "",
        "95% intervals",
        "Of the mean over pictures. For answers of yes or no, the score interval (for flip rates, several answers "
        "about each picture, it is wider than need be); for shares of pixels, of grid points and of energy and for "
        "changes of probability, the normal approximation. The pictures are taken as a random sample; the network's "
        "training is not repeated, so the interval says nothing of other trainings.",
        "Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927",
    ),
    Definition(
        "pair",
        "Change, and its 95% interval",
        "The mean over pictures of the second network's figure less the first's on the same picture: what makes a "
        "picture easy or hard for both drops out. The interval is a bootstrap of 10,000 resamples of the pictures, "
        "both networks with the same ones, between percentiles that are expanded for few pictures. Where every picture "
        "has an answer of yes or no, McNemar's exact test looks at those alone on which the networks differ. Each "
        "figure is judged by itself: of many figures without any difference, some 5 of 100 are called better or worse. "
        "Neither is said of a smaller change of a probability that is itself smaller by more than a tenth (less sure; "
        "more sure the other way round), nor of answers that are steadier but right less often, or without labels, the "
        "first network's less often (other answers).",
        "Efron and Tibshirani, An Introduction to the Bootstrap, 1993; Hesterberg, What Teachers Should Know About the "
        "Bootstrap, 2015; McNemar, Note on the Sampling Error of the Difference Between Correlated Proportions, 1947",
    ),
    Definition(
        "plan",
        "Extra multiply-adds",
        "What the conversion adds to one forward at the traced input size; convolutions and matrix products counted.",
        "counted by blurify from the shapes of the plan",
    ),
    Definition(
        "consistency",
        "Same answer, two crops (consistency)",
        "The share of pictures of which two crops at random places get the same top-1 class. For models that give a "
        "label map: the share of pixels with the same label in both crops, where these overlap.",
        f"{_ZHANG}, section 4",
    ),
    Definition(
        "consistency",
        "Other answer, probability change, one-pixel shift",
        "How often a shift of the crop by one pixel changes the top-1 class, and by how much (in absolute terms, on "
        "average) it changes the probability of the class that was the top one.",
        _AZULAY,
    ),
    Definition(
        "consistency",
        "Accuracy",
        "The share of pictures whose centre crop gets its own label as the top-1 class; of those that have a label.",
        f"{_ZHANG}, section 4",
    ),
    Definition(
        "equivariance",
        "Distance from equivariance",
        "Take the features of the shifted picture, and the shifted features of the picture as it was, each at the "
        "picture's own resolution. The distance is the cosine distance, 1 − ⟨a, b⟩ / (|a| |b|), of the two feature "
        "vectors at each position, averaged over positions and pictures: 0 is perfect equivariance, 2 the most. Shifts "
        "are circular.",
        f"{_ZHANG}, sections 3.1 and 4.1",
    ),
    Definition(
        "aliasing",
        "Energy that aliases",
        "The share of the features' energy, just before a subsampling step, at frequencies above the new Nyquist "
        "frequency (π / stride along any axis): what the subsampling folds back onto lower ones. White noise has 75% "
        "there for a stride of 2 in two dimensions, a signal without frequencies above the limit 0%.",
        "the sampling theorem: Shannon, Communication in the Presence of Noise, 1949; the filter in front of the "
        f"subsampling: {_ZHANG}, section 3",
    ),
    Definition(
        "ranking",
        "Answers kept, KL, relative error",
        "The original and its conversion see the same pictures. Of classifiers: the share of pictures with the same "
        "top-1, and the Kullback-Leibler divergence of the conversion's probabilities from the original's, in nats. Of "
        "other outputs: their squared distance, over that of the original's from their mean over the pictures; 1 is no "
        "better than to answer every picture with that mean. No labels are used.",
        "Kullback and Leibler, On Information and Sufficiency, 1951",
    ),
    Definition(
        "pareto",
        "Cost, Pareto front",
        "Multiply-adds of one forward, as torch.utils.flop_counter counts them (pools have none), and the bytes that a "
        "forward in training keeps for its backward, at the traced input size; both of the whole conversion, less the "
        "original's. A conversion is dominated where another one is at least as good in cost, answers and aliasing and "
        "better in one; what is not dominated is the front. Without pictures, the aliasing left is what a filter lets "
        "through of white noise, and a tenth more where it stands before a convolution.",
        "Pareto, Manuale di economia politica, 1906; the order: docs/budgets.md",
    ),
    Definition(
        "adapted",
        "Answers kept, KL, relative error, while adapting",
        "The original and the converted model see the same pictures, held back from those that the weights are fitted "
        "to. Of classifiers: the share with the same top-1, and the Kullback-Leibler divergence of the model's "
        "probabilities from the original's, in nats. Of other outputs: the relative squared error. A stage after which "
        "the divergence or the error is larger than before is taken back.",
        "Kullback and Leibler, On Information and Sufficiency, 1951",
    ),
    Definition(
        "agreements",
        "Same answer as the original, divergence, confidence",
        "Both models see the same centre crops. The share of pictures with the same top-1, of all and of those where "
        "the original is sure (a probability above 1/2); the Kullback-Leibler divergence of the other's probabilities "
        "from the original's, in nats; and the mean probability that each gives its own top-1.",
        "Kullback and Leibler, On Information and Sufficiency, 1951",
    ),
    Definition(
        "flips",
        "Pictures whose answer flips, probability against shift",
        "Some of the pictures, seen through a window that moves over them by one pixel a step. Shown are the steps at "
        "which the top-1 changes, those first where the smaller of the two probabilities is largest, and of each model "
        "that flips at all its own; and as curves the probability of the answer that a model gives in the middle.",
        f"{_AZULAY}, figures 1 and 2",
    ),
    Definition(
        "spectra",
        "Spectrum just before the subsampling",
        "The mean power of the frequencies in each ring, of the signal that the site's subsampling is applied to, "
        "relative to the mean over all frequencies (the signal's mean left out): white noise has 0 dB. A ring holds "
        "the frequencies whose larger component is alike, as subsampling along both sides folds squares, not circles.",
        f"{_ZHANG}, section 2",
    ),
    Definition(
        "features",
        "Feature maps under a shift",
        "The picture is rolled by the pixels of one sample before the site's subsampling, so that other samples are "
        "kept; what is kept is shifted back by that part of a sample in the Fourier domain. By the sampling theorem "
        "the two are equal where nothing lay above the new Nyquist frequency; the difference is aliasing, here and "
        "before, and borders. The figure is the length of the difference over that of the features, of all channels.",
        f"{_ZHANG}, figure 1 and section 3.1",
    ),
    Definition(
        "latency",
        "Time, median",
        "Whole forwards, the normalising of the pictures included, after two runs to warm up. The models run in turn, "
        "every other round in the opposite order. Times are medians with their quartiles, over the pictures of a run; "
        "the ratio to the first is taken within each round, which a machine that is busy for a while hardly moves. "
        "Processor time is of all threads.",
        "blurify.metrics.latency",
    ),
    Definition(
        "stability",
        "Flip rate",
        "Sequences of frames that a perturbation changes a little from one to the next. The share of comparisons in "
        "which the top-1 class changes: each frame with the one before it, or, for noise, with the unperturbed one.",
        f"{_HENDRYCKS}, section 4.2",
    ),
    Definition(
        "stability",
        "Accuracy under corruption, same answer as for the clean picture",
        "Corruptions of the centre crop at severities 1 (mild) to 5. Accuracy is the share of right answers; the other "
        "figure, the share of answers that stay those for the clean picture.",
        f"{_HENDRYCKS}, section 4.1",
    ),
    Definition(
        "worst_case",
        "Worst case",
        "Each picture is tried at every point of a grid of translations and rotations. Same answer: the share of "
        "pictures with one answer at all points. Right at all points: the share that is never wrong.",
        f"{_ENGSTROM}, section 3",
    ),
)


def definitions(report: Report) -> list[Definition]:
    """The definitions of what a report shows."""
    shown = {
        "",
        *(["plan"] if report.plan else []),
        *(["ranking"] if report.ranking else []),
        *(["pareto"] if report.pareto else []),
        *(["pair"] if any(report.compared) else []),
        *(["adapted"] if any(report.adapted) else []),
    }
    if report.evidence is not None:
        shown |= {name for name in ("flips", "spectra", "features", "latency") if getattr(report.evidence, name)}
    if any(agreement_of(report, index) for index in range(1, len(report.measurements))):
        shown.add("agreements")
    for measured in report.measurements:
        shown |= {item.part for item in _DEFINITIONS if item.part and getattr(measured, item.part, None) is not None}
    return [item for item in _DEFINITIONS if item.part in shown]
