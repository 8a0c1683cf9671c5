"""The folder job on many machines, over Ray Data: `portraitmatting distributed`.

In order: `storage` (a folder on a disk or in an object store), `scan` (what is still to be done),
`cluster` (Ray, started or joined), `run` (hands images out), `worker` (runs the pipeline), `report`
(tables and summary).
"""
