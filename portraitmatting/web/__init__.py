"""A local page for single photos: `portraitmatting web`.

    __main__ (command line, server) -> guard (what may come in) -> page (layout) -> job (the work)

It uses the public API, as any program would; nothing else of the package knows of it. Only page.py
and __main__.py know Gradio.
"""
