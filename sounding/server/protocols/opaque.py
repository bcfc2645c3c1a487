"""Reasoning in fields that clients send back unread: a signature, "encrypted content".

Hosted services encrypt their reasoning there. We encode the plain text, so that it comes back even
from clients that drop everything else they do not understand.
"""

import base64
import binascii

_MARK = "sounding1."


def wrap(text: str) -> str:
    """Encode a text as an opaque token."""
    return _MARK + base64.urlsafe_b64encode(text.encode()).decode()


def unwrap(token: str) -> str | None:
    """Decode an opaque token; None for one that is not ours."""
    if not token.startswith(_MARK):
        return None
    try:
        return base64.urlsafe_b64decode(token[len(_MARK) :]).decode()
    except (binascii.Error, ValueError):
        return None
