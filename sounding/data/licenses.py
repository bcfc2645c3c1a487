"""Classify the licence of a text: package metadata, licence files, headers of source files.

Only two classes matter for a document: families of permissive licences, and anything with
obligations. It is a classification by words, not legal advice.
"""

import re
from email.message import Message

UNKNOWN = "unknown"

# Order matters only for the label of a text that names several.
_PERMISSIVE = {
    "Apache-2.0": r"\bapache\b",
    "MIT": r"\bMIT(-0)?\b|permission is hereby granted, free of charge",
    "BSD": r"\b0?BSD\b|redistribution and use in source and binary forms",
    "PSF-2.0": r"\bPSF\b|python software foundation|\bPython-2\.0",
    "ISC": r"\bISC\b|permission to use, copy, modify, and/or distribute",
    "Zlib": r"\bzlib\b",
    "CC0-1.0": r"\bCC0\b",
    "Unlicense": r"\bunlicense\b|released into the public domain",
    "HPND": r"\bHPND\b",
}
_OBLIGING = re.compile(
    r"\b[AL]?GPL|\bGNU (lesser |affero |library )?general public|\bMPL\b|mozilla public|\bEPL\b"
    r"|\bCDDL\b|\bSSPL\b|\bBUSL\b|business source|\bCC[- ]BY|non-?commercial|proprietary",
    re.IGNORECASE,
)
_SPDX_LINE = re.compile(r"SPDX-License-Identifier:\s*([^\n]+)")
_COPYLEFT_HEADER = re.compile(
    r"GNU\s+(Lesser |Affero |Library )?General\s+Public\s+Licen[cs]e|Mozilla\s+Public\s+License"
)
_HEADER_CHARACTERS = 3000


def families(text: str) -> frozenset[str]:
    """The permissive families a licence text or expression names; empty if it names another kind.

    "Apache-2.0 AND MIT" gives both; "GPL-3.0-only OR MIT" gives none, because telling a choice
    from a conjunction is not worth the risk.
    """
    if _OBLIGING.search(text):
        return frozenset()
    return frozenset(
        name for name, pattern in _PERMISSIVE.items() if re.search(pattern, text, re.IGNORECASE)
    )


def metadata_license(metadata: Message) -> str:
    """The most exact licence statement of a package's core metadata, or "unknown".

    The SPDX expression first, then the classifiers, then the free text: that last field may contain
    the licences of bundled libraries as well, which do not apply to the Python files.
    """
    expression = str(metadata.get("License-Expression") or "")
    classifiers = [
        str(line).rsplit("::", 1)[-1].strip()
        for line in metadata.get_all("Classifier", [])
        if str(line).startswith("License ::")
    ]
    named = " AND ".join(line for line in classifiers if line != "OSI Approved")
    return expression or named or str(metadata.get("License") or "") or UNKNOWN


def text_license(text: str) -> str:
    """Label a licence file: one family's name, several joined by AND, or "unknown"."""
    return " AND ".join(sorted(families(text))) or UNKNOWN


def header_allows(text: str) -> bool:
    """True if the head of a source file names no licence with obligations.

    An SPDX line decides where there is one; otherwise the names of the usual copyleft licences do.
    """
    head = text[:_HEADER_CHARACTERS]
    spdx = _SPDX_LINE.search(head)
    if spdx:
        return bool(families(spdx.group(1)))
    return not _COPYLEFT_HEADER.search(head)
