"""A local page for single photos: `portraitmatting web`.

    server -> guard (what may come in) -> page (for people) | api (for programs) -> job (the work)

Only page.py and server.py know Gradio.
"""
