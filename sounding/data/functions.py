"""Self-contained functions, extracted from a corpus as documents of their own.

Files teach how code fits together; users request short functions, described in a sentence. Selected
are functions of the outermost level whose names are all their own, built in, or imported from the
standard library; that are documented, of few lines and few branches, and not similar to an earlier
one.
"""

import ast
import builtins
import hashlib
import json
import platform
import shutil
import symtable
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from sounding.data.corpus import SHARD_BYTES, STATS_NAME, describe, read_stats
from sounding.data.documents import Document, ShardWriter, read_documents
from sounding.data.duplicates import THRESHOLD, Duplicates, signature
from sounding.data.manifest import require_split
from sounding.files import write_file

REASONS = {
    "test": "tests something that is not there",
    "undocumented": "no docstring says what it does",
    "trivial": "no code to speak of",
    "long": "longer than the limit",
    "branching": "more branches than the limit",
    "dependent": "uses names of its module or of other packages",
    "duplicate": "identical to one that was taken",
    "near-duplicate": "nearly identical to one that was taken",
}

MIN_LINES, MAX_LINES = 3, 40  # with the head, without the docstring
MAX_DOCSTRING_LINES = 20
MIN_DOCSTRING_CHARACTERS = 15
MAX_BRANCHES = 10

_RULES = 1  # raised when a change of the rules makes other documents
_BRANCHES = (
    ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.BoolOp, ast.Assert,
    ast.comprehension, ast.match_case,
)  # fmt: skip
_BUILTINS = frozenset(dir(builtins)) | {"__name__", "__file__"}
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def mine(
    corpus: Path,
    out: Path,
    split: str = "train",
    *,
    progress: Callable[[int], None] = lambda num_documents: None,
) -> dict[str, Any]:
    """Write the functions of one split to the new folder `out`, a corpus too.

    Returns its statistics. The folder appears when it is complete. Raises ValueError if it exists,
    or no function is found.
    """
    require_split("split", split)
    if out.exists():
        raise ValueError(f"{out} exists; choose a new folder or remove it")
    stats = read_stats(corpus)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    writer = ShardWriter(partial, split, SHARD_BYTES)
    duplicates, packages = Duplicates(THRESHOLD), dict[str, dict[str, Any]]()
    for number, document in enumerate(read_documents(corpus, split), 1):
        entry = packages.setdefault(document.package, _entry(document, split))
        for reason, text, name in functions_of(document.text):
            digest = hashlib.sha256(text.encode()).hexdigest()
            reason = reason or duplicates.reason(digest, signature(text))
            if reason:
                entry["skipped"][reason] += 1
                continue
            place = {"path": f"{document.path}:{name}", "sha256": digest, "text": text}
            writer.write(Document(**{**vars(document), **place}))
            entry["documents"] += 1
            entry["bytes"] += len(text.encode())
        progress(number)
    writer.finish()
    if not writer.paths:
        shutil.rmtree(partial)
        raise ValueError(f"no function of {corpus}, {split}, stands alone")
    identity = repr((stats["identity"], split, _RULES, platform.python_version()))
    stats = {
        "identity": hashlib.sha256(identity.encode()).hexdigest(),
        "python": platform.python_version(),
        "functions_of": stats["identity"],
        **describe({name: e for name, e in packages.items() if e["documents"]}, writer.paths),
        "skipped": dict(sum((entry["skipped"] for entry in packages.values()), Counter[str]())),
    }
    write_file(partial / STATS_NAME, json.dumps(stats, indent=1).encode() + b"\n")
    partial.rename(out)
    return stats


def _entry(document: Document, split: str) -> dict[str, Any]:
    return {
        "version": document.version,
        "license": document.license,
        "split": split,
        "documents": 0,
        "bytes": 0,
        "skipped": Counter[str](),
    }


def functions_of(text: str) -> list[tuple[str | None, str, str]]:
    """The outermost functions of a module: a reason not to take one, its document, its name.

    The document is the imports it needs and its source; empty where there is a reason.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in other people's strings
        try:
            module = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            return []
        imports = _standard_imports(module)
        nodes = [node for node in module.body if isinstance(node, _Function)]
        return [(*_judge(node, text, imports), node.name) for node in nodes]


def _judge(node: _Function, text: str, imports: Mapping[str, "_Import"]) -> tuple[str | None, str]:
    reason = _reason(node)
    if reason:
        return reason, ""
    source = _source(node, text)
    needed = _needed_imports(node, source, imports)
    if needed is None:
        return "dependent", ""
    above = "\n".join(needed) + "\n\n\n" if needed else ""
    return None, f"{above}{source}\n"


def _reason(node: _Function) -> str | None:
    if node.name.startswith("test") or node.name.startswith("__"):
        return "test"
    docstring = ast.get_docstring(node)
    if not docstring or len(docstring) < MIN_DOCSTRING_CHARACTERS:
        return "undocumented"
    if docstring.count("\n") >= MAX_DOCSTRING_LINES:
        return "long"
    body = node.body[1:]
    if not body or all(isinstance(x, ast.Pass | ast.Raise) or _is_constant(x) for x in body):
        return "trivial"
    first = node.body[0]
    lines = (node.end_lineno or 0) - node.lineno - ((first.end_lineno or 0) - first.lineno)
    if lines < MIN_LINES:
        return "trivial"
    if lines > MAX_LINES:
        return "long"
    if sum(isinstance(inner, _BRANCHES) for inner in ast.walk(node)) > MAX_BRANCHES:
        return "branching"
    return None


def _is_constant(node: ast.stmt) -> bool:
    """True if a statement is an ellipsis, a lone string, or returns a constant."""
    return isinstance(node, ast.Expr | ast.Return) and (
        node.value is None or isinstance(node.value, ast.Constant)
    )


def _source(node: _Function, text: str) -> str:
    """The lines of a function, decorators included, without white space at their ends."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    lines = text.split("\n")[first - 1 : node.end_lineno]
    return "\n".join(line.rstrip() for line in lines)


class _Import(NamedTuple):
    module: str  # that names are taken from; "" where the module itself is
    alias: str  # as it is written behind `import`


def _standard_imports(tree: ast.Module) -> dict[str, _Import]:
    """The names bound by outermost imports of the standard library."""
    found: dict[str, _Import] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                if top in sys.stdlib_module_names:
                    found[alias.asname or top] = _Import("", ast.unparse(alias))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            if module.partition(".")[0] in sys.stdlib_module_names - {"__future__"}:
                for alias in node.names:
                    found[alias.asname or alias.name] = _Import(module, ast.unparse(alias))
    return found


def _needed_imports(
    node: _Function, source: str, imports: Mapping[str, _Import]
) -> list[str] | None:
    """The import lines that a function needs, in order; None if it needs what they do not bring."""
    try:
        table = symtable.symtable(source, "function", "exec")
    except (SyntaxError, ValueError):
        return None
    free = _global_names(table) - {node.name} - _BUILTINS
    if not free <= imports.keys():
        return None
    needed = sorted({imports[name] for name in free})
    lines = [f"import {alias}" for module, alias in needed if not module]
    for module, group in groupby(needed, key=lambda one: one.module):
        if module:
            lines.append(f"from {module} import {', '.join(alias for _, alias in group)}")
    return lines


def _global_names(table: symtable.SymbolTable) -> set[str]:
    """Names that a module's code looks up outside of every function and class in it."""
    outermost = table.get_type() == "module"
    found = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if (symbol.is_referenced() if outermost else symbol.is_global())
    }
    return found.union(*map(_global_names, table.get_children()))
