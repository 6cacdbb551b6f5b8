"""Keep: models by name or file, converted models in files, and back.

From the bottom up: `unfinished` is where a file is written, `atomic` writes any file of ours; `sources` builds
architectures by name; `pickles` reads pickles safely; `tensors` streams safetensors; `checkpoint` is what a file
holds; `formats` reads and writes it, one object a file format; `weights` puts tensors into a model; `rebuilding`
makes the converted model of a checkpoint; `checkpoints` has `save` and `load`, and `opening` opens whatever a user
may name as MODEL.
"""
