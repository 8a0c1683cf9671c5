"""The folder job on many machines, over Ray Data: `portraitmatting distributed`.

In order: `places` (a folder, wherever it is), `survey` (what is still to be done), `cluster` (Ray,
started or joined), `worker` (what every worker does with its images), `job` (hands them out),
`report` (what became of them). Nothing else in the package knows of it.
"""
