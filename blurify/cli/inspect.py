"""`blurify inspect`: list the sites of a model, what would be done and what it costs."""

from __future__ import annotations

from blurify.cli import console, options, report


def inspect(
    model: options.Model,
    recipe: options.Recipe = None,
    filter_size: options.FilterSize = None,
    input_shape: options.InputShape = None,
    arch: options.Arch = None,
    random: options.Random = False,
    allow: options.Allow = None,
    trust: options.Trust = False,
    json: options.Json = False,
) -> None:
    """List where a model subsamples, what would be done there, and what it costs.

    Nothing is changed or written, and no pretrained weights are downloaded: sites do not depend on them.
    """
    options.check_filter_size(filter_size)
    with console.working("reading and tracing the model"):
        inputs = options.example_inputs(input_shape)
        from blurify.recipes import load_recipe

        wanted = load_recipe(recipe)
        if filter_size is not None:
            wanted = wanted.with_filter(filter_size=filter_size)
        # `--random` changes nothing here; it is taken so that a command line of `convert` can be tried with `inspect`.
        loaded = options.open_model(model, arch=arch, pretrained=False, allow=allow, trust=trust)
        import blurify

        plan = blurify.inspect(loaded.model, example_inputs=inputs, recipe=wanted)
    if json:
        console.print_json({**plan.to_dict(), "totals": report.totals(plan)})
    else:
        report.print_plan(plan)
