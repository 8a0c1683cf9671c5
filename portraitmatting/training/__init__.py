"""Training: images in, a run directory out.

    config, recipe -> sources -> augment -> data -> loop -> run_directory -> export
                                                     | data_record
                                                     ` trainer: one step, of init_weights,
                                                       deep_supervision, losses, optimiser, runtime

`portraitmatting train` is the command line.
"""
