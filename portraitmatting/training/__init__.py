"""Training: images in, a run directory out.

    config, recipe -> sources -> augment -> data -> loop -> run_directory -> export
                                                     ` trainer: one step, of init_weights,
                                                       losses, optimiser, runtime

`portraitmatting train` is the command line.
"""
