"""The folder job on many machines, over Ray Data: `portraitmatting distributed`.

In order: `storage` (a folder, wherever it is), `scan` (what is still to be done), `cluster` (Ray,
started or joined), `run` (hands images out), `worker` (what every worker does with them), `report`
(their results).
"""
