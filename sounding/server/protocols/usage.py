"""Usage in the terms of OpenAI and DeepSeek."""

from collections.abc import Sequence
from typing import Any

from sounding.engine.requests import DraftCounts, Usage


def openai_usage(usages: Sequence[Usage], reasoning_tokens: int | None = None) -> dict[str, Any]:
    """The `usage` of a completion; choices share one prompt, their answers add up.

    `prompt_cache_miss_reason` (ours) is the reason for the miss; the prediction tokens count
    accepted and rejected drafts, and `draft_positions` (ours) the drafts verified and accepted at
    each place among those of a step.
    """
    first = usages[0]
    completion = sum(usage.completion_tokens for usage in usages)
    accepted = sum(usage.accepted_tokens for usage in usages)
    details: dict[str, Any] = {
        "accepted_prediction_tokens": accepted,
        "rejected_prediction_tokens": sum(u.drafted_tokens for u in usages) - accepted,
    }
    drafts = sum((usage.drafts for usage in usages), DraftCounts())
    if drafts.verified:
        details["draft_positions"] = {"verified": drafts.verified, "accepted": drafts.accepted}
    if reasoning_tokens is not None:
        details["reasoning_tokens"] = reasoning_tokens
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "prompt_cache_hit_tokens": first.hit_tokens,
        "prompt_cache_miss_tokens": first.prompt_tokens - first.hit_tokens,
        "prompt_cache_miss_reason": first.miss_reason,
        "prompt_tokens_details": {"cached_tokens": first.hit_tokens},
        "completion_tokens_details": details,
    }
