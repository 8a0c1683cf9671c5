"""The folder job: every picture of a folder to mattes and cut-outs.

    plan = plan_folder("photos", "mattes", kinds=["alpha", "rgba"])
    summary = matte_folder(plan, Predictor(load_model()))

`plan.plan_folder` settles what is read and written, `job.matte_folder` does it by way of
`chain.Chain`, `style.Style` says how results look. Nothing is imported here: a plan needs no
PyTorch, so that a wrong call is answered at once.
"""
