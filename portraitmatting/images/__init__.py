"""Image files: `files` reads and writes them, `decode` and `encode` turn bytes into pixels.

`kinds` recognises files by name and content; `png`, `tiff` and `deep` decode what Pillow does not
read right; `colour` knows what RGB values mean, `metadata` what results keep, `pixels` the depths.
"""
