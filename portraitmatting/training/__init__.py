"""Training: images in, a run directory out.

    config, recipe -> sources -> augment -> data -> loop -> run_directory -> export
                                                     ^ trainer: one step
                                                       (init_weights, deep_supervision, losses,
                                                        param_groups, schedule, runtime)
                                                     ^ validate, data_record

`portraitmatting train` is the command line.
"""
