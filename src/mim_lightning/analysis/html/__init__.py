"""Self-contained HTML pages, rendered from `templates/`."""
