"""Credentials in source files: files that seem to contain one are dropped.

A short list of formats with a distinctive shape, whose matches are rarely false positives,
plus assignments of a random-looking literal to a telling name. Scanners with hundreds of rules and
entropy tests are not used: on library code nearly all their matches are hashes and test vectors.
"""

import math
import re
from collections import Counter

# Words one of which any match contains, and the form. Looking for the words first is twenty times
# faster than looking for the forms.
_SHAPES = (
    (
        "PRIVATE",
        r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----[ \t]*\\?n?[\"']?\s*[\"']?"
        r"[A-Za-z0-9+/=:,\- \t]{16,}",
    ),
    ("AKIA ASIA", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ("ghp_ gho_ ghu_ ghs_ ghr_", r"\bgh[pousr]_[0-9A-Za-z]{36}\b"),
    ("github_pat_", r"\bgithub_pat_[0-9A-Za-z_]{60,}"),
    ("glpat-", r"\bglpat-[0-9A-Za-z_\-]{20}"),
    ("xox", r"\bxox[abeoprs]-[0-9A-Za-z\-]{20,}"),
    ("hooks.slack.com", r"hooks\.slack\.com/services/T\w{8,}/B\w{8,}/"),
    ("k_live_", r"\b[rs]k_live_[0-9A-Za-z]{20,}"),
    ("AIza", r"\bAIza[0-9A-Za-z_\-]{35}\b"),
    ("pypi-AgEI", r"\bpypi-AgEI[0-9A-Za-z_\-]{50,}"),
    ("npm_", r"\bnpm_[0-9A-Za-z]{36}\b"),
    ("hf_", r"\bhf_[A-Za-z]{34}\b"),
    ("sk-", r"\bsk-(?:ant-|proj-)?[0-9A-Za-z_\-]{40,}"),
    ("SG.", r"\bSG\.[0-9A-Za-z_\-]{22}\.[0-9A-Za-z_\-]{43}"),
    (
        "postgres mysql:// mongodb amqp redis://",
        r"\b(?:postgres(?:ql)?|mysql|mongodb(?:\+srv)?|amqps?|redis)://"
        r"[^\s:@/'\"]{2,}:(?=[^\s@/'\"]*\d)[^\s:@/'\"{}<>%]{12,}@",
    ),
)
_FORMS = [(words.split(), re.compile(form)) for words, form in _SHAPES]
_ASSIGNMENT = re.compile(
    r"(?i)(?:api_?key|secret|passwd|password|auth_?token|access_?token|private_?key)\w*[\"']?\]?"
    r"\s*[:=]\s*[\"']([0-9A-Za-z+/_\-]{24,}={0,2})[\"']"
)
_MIN_BITS_PER_CHARACTER = 3.8  # random base64 of this length has 4.2 and more, words under 3.5


def find_credential(text: str) -> str | None:
    """The first piece of text that looks like a credential, or None."""
    for words, form in _FORMS:
        found = form.search(text) if any(word in text for word in words) else None
        if found:
            return found.group(0)
    for match in _ASSIGNMENT.finditer(text):
        value = match.group(1)
        mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
        if mixed and _bits_per_character(value) > _MIN_BITS_PER_CHARACTER:
            return value
    return None


def _bits_per_character(text: str) -> float:
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)
