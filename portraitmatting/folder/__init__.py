"""The folder job: every picture of a folder to mattes and cut-outs.

    plan = plan_folder("photos", "mattes", kinds=["alpha", "rgba"])
    summary = matte_folder(plan, Predictor(load_model()))
"""

from portraitmatting.folder.job import Summary, matte_folder
from portraitmatting.folder.plan import KINDS, Plan, plan_folder
from portraitmatting.folder.results import Style

__all__ = ["KINDS", "Plan", "Style", "Summary", "matte_folder", "plan_folder"]
