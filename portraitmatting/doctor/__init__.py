"""What this environment is, and what is wrong with it in words: `portraitmatting doctor`.

`environment` looks at packages and libraries, `machine` at devices and threads, `shelves` at the
checkpoint. A check returns findings and never raises for what it finds broken.
"""
