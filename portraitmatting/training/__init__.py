"""Training: images in, a run directory out, and its weights as a checkpoint.

    config -> sources -> augment -> data -> loop -> run_directory
    init_weights, losses, runtime -> trainer (one step) -^

`portraitmatting train` is the command line.
"""
