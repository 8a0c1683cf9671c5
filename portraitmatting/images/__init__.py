"""Image files: `files` reads and writes them, `decode` and `encode` turn bytes into pixels and
back."""
