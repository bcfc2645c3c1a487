"""Reasoning in the fields that clients pass back unread: a signature, "encrypted content".

Hosted services hide their reasoning there. Ours is open; what we put there is the text itself, so
that it comes back even where a client throws away everything it does not understand.
"""

import base64
import binascii

_MARK = "sounding1."


def wrap(text: str) -> str:
    """The text in a form that survives as an opaque token."""
    return _MARK + base64.urlsafe_b64encode(text.encode()).decode()


def unwrap(token: str) -> str | None:
    """What was wrapped, None for a token that is not ours."""
    if not token.startswith(_MARK):
        return None
    try:
        return base64.urlsafe_b64decode(token[len(_MARK) :]).decode()
    except (binascii.Error, ValueError):
        return None
