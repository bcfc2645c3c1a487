"""Credentials in source files: a file that seems to hold one is not learned from.

A short list of forms that are recognised by their shape, where a match is hardly ever an accident,
plus assignments of a random-looking literal to a telling name. Scanners with hundreds of rules and
entropy tests were left out: on library code nearly all they find are hashes and test vectors.
"""

import math
import re
from collections import Counter

_SHAPES = {
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----[ \t]*\\?n?[\"']?\s*[\"']?"
    r"[A-Za-z0-9+/=:,\- \t]{16,}",
    "AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "GitHub token": r"\bgh[pousr]_[0-9A-Za-z]{36}\b|\bgithub_pat_[0-9A-Za-z_]{60,}",
    "GitLab token": r"\bglpat-[0-9A-Za-z_\-]{20}",
    "Slack token": r"\bxox[abeoprs]-[0-9A-Za-z\-]{20,}|hooks\.slack\.com/services/T\w{8,}/B\w{8,}/",
    "Stripe key": r"\b[rs]k_live_[0-9A-Za-z]{20,}",
    "Google key": r"\bAIza[0-9A-Za-z_\-]{35}\b",
    "package index token": r"\bpypi-AgEI[0-9A-Za-z_\-]{50,}|\bnpm_[0-9A-Za-z]{36}\b",
    "model hub token": r"\bhf_[A-Za-z]{34}\b|\bsk-(?:ant-|proj-)?[0-9A-Za-z_\-]{40,}",
    "SendGrid key": r"\bSG\.[0-9A-Za-z_\-]{22}\.[0-9A-Za-z_\-]{43}",
    "URL with password": r"\b(?:postgres(?:ql)?|mysql|mongodb(?:\+srv)?|amqps?|redis)://"
    r"[^\s:@/'\"]{2,}:(?=[^\s@/'\"]*\d)[^\s:@/'\"{}<>%]{12,}@",
}
_SHAPE = re.compile("|".join(f"(?:{pattern})" for pattern in _SHAPES.values()))
_ASSIGNMENT = re.compile(
    r"(?i)(?:api_?key|secret|passwd|password|auth_?token|access_?token|private_?key)\w*[\"']?\]?"
    r"\s*[:=]\s*[\"']([0-9A-Za-z+/_\-]{24,}={0,2})[\"']"
)
_MIN_BITS_PER_CHARACTER = 3.8  # random base64 of this length has 4.2 and more, words under 3.5


def find_credential(text: str) -> str | None:
    """The first piece of text that looks like a credential, or None."""
    found = _SHAPE.search(text)
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
