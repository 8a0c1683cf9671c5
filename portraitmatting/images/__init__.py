"""Images: `files` reads and writes them, `listing` finds them, `source` takes other forms of them.

`decode` and `encode` turn bytes into pixels and back, `codecs` and `tiff` decode what Pillow does
not read correctly; `colour` has ICC profiles, `metadata` what results keep of EXIF and XMP,
`pixels` conversions between 8 bits, 16 bits and floats.
"""
