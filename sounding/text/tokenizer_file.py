"""Read a tokenizer.json; settings that would silently cut, change or lose text are refused.

Truncation and padding are ignored, as `transformers` does: the caller limits the length of prompts.
So are post-processors, which only add tokens that a prompt already has. All else that the published
file does not do (normalizers, spaces put in or swallowed, random merges) is refused by name, and so
are ids of two tokens or outside of the model's.
"""

import json
from collections.abc import Iterator
from typing import Any

import tokenizers

from sounding.files import parse_json

_MOST_IDS = 1 << 22  # of any vocabulary: tables have a row for each id
_ADDED_FLAGS = {
    "lstrip": "swallows the white space before it",
    "rstrip": "swallows the white space behind it",
    "single_word": "is not found next to a letter",
}


def read_core(text: str, vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """The library's tokenizer for the text of a tokenizer.json.

    `vocab_size` is that of its model. Raises ValueError for anything but byte-level
    BPE that keeps every byte, and for ids outside of the model's.
    """
    layout = parse_json(text.encode("utf-8", "surrogatepass"), "the tokenizer.json")
    model = layout.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(vocab, dict):
        raise ValueError("not a tokenizer.json: it must have a model with a vocab")
    added = layout.get("added_tokens")
    added = [] if added is None else added
    _require_ids(vocab, added, _MOST_IDS if vocab_size is None else vocab_size)
    _require_plain_model(model)
    _require_plain_text(layout)
    layout |= {"truncation": None, "padding": None}
    if _kind(layout.get("post_processor")) not in (None, "ByteLevel"):
        layout["post_processor"] = None
    try:
        core = tokenizers.Tokenizer.from_str(json.dumps(layout))
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"not a tokenizer.json ({error})") from None
    for token in added:
        if core.token_to_id(token["content"]) != token["id"]:
            raise ValueError(
                f"added_tokens: {token['content']!r} cannot have id {token['id']}, which does not "
                "follow the ids before it; the file is damaged or of another program"
            )
    return core


def _require_ids(vocab: dict[str, Any], added: Any, limit: int) -> None:
    """Require that each id is a number below `limit` and has one token."""
    names: dict[int, str] = {}
    for name, number in _ids(vocab, added):
        where = f"token {name!r:.80} has id {number!r:.30}"
        if type(number) is not int or number < 0:
            raise ValueError(f"{where}; ids are whole numbers from 0 on")
        if number >= limit:
            raise ValueError(
                f"{where}; the model has {limit:,} ids, 0 to {limit - 1}, so this tokenizer does "
                "not belong to it"
            )
        if names.setdefault(number, name) != name:
            raise ValueError(f"{where}, which {names[number]!r:.80} has too; the file is damaged")


def _ids(vocab: dict[str, Any], added: Any) -> Iterator[tuple[str, Any]]:
    yield from vocab.items()
    if not isinstance(added, list):
        raise ValueError(f"added_tokens is {added!r:.60}; it must be a list")
    seen = set()
    for token in added:
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or not content or "id" not in token:
            raise ValueError(f"added_tokens has {token!r:.60}; each needs an id and a content")
        if content in seen:
            raise ValueError(f"added_tokens has {content!r:.80} twice; the file is damaged")
        seen.add(content)
        if content in vocab and vocab[content] != token["id"]:
            raise ValueError(
                f"token {content!r:.80} has id {vocab[content]!r:.30} in the vocabulary and "
                f"{token['id']!r:.30} in added_tokens; the file is damaged"
            )
        for flag, effect in _ADDED_FLAGS.items():
            if token.get(flag):
                raise ValueError(f"added_tokens: {content!r:.80} has {flag}: it {effect}")
        yield content, token["id"]


def _require_plain_model(model: dict[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"model.type is {model['type']!r:.40}; only byte-level BPE is read")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"model.{name} is {model[name]!r:.40}; only null keeps text as it is")
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    missing = sorted(set(alphabet) - model["vocab"].keys())
    if missing:
        raise ValueError(
            f"model.vocab has no token for {len(missing)} of the 256 bytes, the first is "
            f"{missing[0]!r}; text with them would be lost"
        )


def _require_plain_text(layout: dict[str, Any]) -> None:
    """Nothing but cuts between bytes of the text may be made before the merges."""
    for part in _flat(layout.get("normalizer"), "normalizers"):
        raise ValueError(f"normalizer {_kind(part)} changes text; only an empty one is read")
    parts = list(_flat(layout.get("pre_tokenizer"), "pretokenizers"))
    for part in parts:
        kind = _kind(part)
        if kind not in ("Split", "Digits", "Punctuation", "ByteLevel"):
            raise ValueError(
                f"pre_tokenizer {kind} may change text; only cuts into pieces are read"
            )
        if part.get("behavior") == "Removed":
            raise ValueError(f"pre_tokenizer {kind} removes what it finds; text would be lost")
        if kind == "ByteLevel" and part.get("add_prefix_space", True):
            raise ValueError("pre_tokenizer ByteLevel has add_prefix_space: it changes text")
    if [_kind(part) for part in parts].count("ByteLevel") != 1 or _kind(parts[-1]) != "ByteLevel":
        raise ValueError("pre_tokenizer must end with ByteLevel; only byte-level BPE is read")


def _flat(part: Any, inner: str) -> Iterator[Any]:
    """A part of the file, a sequence of such in the place of its members."""
    if _kind(part) != "Sequence":
        yield from [] if part is None else [part]
        return
    members = part.get(inner)
    if not isinstance(members, list):
        raise ValueError(f"a Sequence needs a list of {inner}, not {members!r:.60}")
    for member in members:
        yield from _flat(member, inner)


def _kind(part: Any) -> str | None:
    """The type of a part that the library has several of."""
    if part is None:
        return None
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError(f"a part of the tokenizer.json is {part!r:.60}; it must name its type")
    return str(part["type"])
