"""A local page for single photos: `portraitmatting web`.

    guard (what is let in) -> page (for people) | server's API (for programs) -> job (the work)

Only page.py and server.py know Gradio.
"""
