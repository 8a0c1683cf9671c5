"""Training: images in, a run directory out.

    sources -> augment -> data -> loop -> run_directory -> export_run
                                   ^ start, coarse, losses, parts, schedule, ema, validate

`portraitmatting train` is the command line.
"""
