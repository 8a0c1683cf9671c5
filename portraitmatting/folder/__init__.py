"""The folder job: every image of a folder to mattes and cut-outs.

    plan = plan_folder("photos", "mattes", kinds=["alpha", "rgba"])
    summary = matte_folder(plan, Predictor(load_model()))

`plan.plan_folder` decides what is read and written, `job.matte_folder` does it with a
`pipeline.Pipeline`, `results.ResultOptions` says how results look. Nothing is imported here: a plan
needs no PyTorch, so that a wrong call is answered at once.
"""
