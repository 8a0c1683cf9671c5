"""The folder job: every image of a folder to mattes and cut-outs.

    plan = plan_folder("photos", "mattes", kinds=["alpha", "rgba"])
    summary = matte_folder(plan, Predictor(load_model()))

`plan` lists what is read and written, `results` has the look and the names of results, `journal`
what earlier runs have done, `job` runs a plan through the `pipeline`; `single` is one image to one
file. Nothing is imported here: a plan needs no PyTorch, so that a wrong call is answered at once.
"""
