"""Every reason for which a site is skipped, in words that a user can act on."""

REASONS: dict[str, str] = {
    "stem": "reads the image: its dense version would cost most; the recipe 'full' converts it",
    "patchify-stem": "cuts the image into patches (kernel <= stride); the recipe 'full' blurs the image first",
    "already-filtered": "already anti-aliased: what it reads or does is a fixed low-pass filter",
    "keeps-all": "a fixed filter bank whose bands keep all of its input (a wavelet transform): nothing is lost",
    "global-pool": "covers its whole input, so that nothing is left to alias{}",
    "recipe": "the recipe leaves it alone: {}",
    "returns-indices": "returns indices for unpooling, which a blurred pool does not have: use return_indices=False",
    "whole-numbers": "reads whole numbers or a mask, which can't be blurred: make them floating point to convert it",
    "slice": "a strided slice that is no plain subsampling (its phases or dimensions): use blurify.BlurPool2d there",
    "other-pool": "{}: no low-pass rule for this kind of pooling; use a max or average pool",
    "scripted": "scripted code can't be changed: build the model without torch.jit",
    "not-run": "not run in eval mode on these inputs, so that nothing is known about it",
    "varies": "called several times with different strides or shapes of use: give each use its own module",
    "branch": "is joined with what {} makes, which can't be blurred: so that both lie on one grid, neither is",
    "source": "can't be changed where it stands ({}): put a pooling or convolution module there in the model's code",
}
