"""HTML that all tabs of the page share."""

import html

from jaxdae.errors import InputError


def error_text(error: InputError) -> str:
    """An error message on the page."""
    text = str(error)
    return f'<p role="alert">{html.escape(text[:1].upper() + text[1:])}.</p>'
