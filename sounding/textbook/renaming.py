"""Rename local variables without changing the behaviour of a program."""

import ast
import builtins
from collections.abc import Iterator

from sounding.textbook.drawing import Draw
from sounding.textbook.exercises import Definition
from sounding.textbook.programs import FUNCTIONS, Edit, ProgramSource, bound_names, words

_READ_NAMES = frozenset({"locals", "globals", "vars", "eval", "exec", "dir"})

# Common alternatives to names of local variables.
_OTHER_NAMES = {
    "total": ("running_total", "amount", "acc", "sum_so_far"),
    "totals": ("sums", "amounts"),
    "result": ("out", "answer", "res", "output"),
    "results": ("outputs", "found", "collected"),
    "value": ("item", "element", "entry", "v"),
    "item": ("element", "entry", "x"),
    "count": ("num", "tally", "n", "how_many"),
    "counts": ("tally", "freq", "occurrences"),
    "index": ("idx", "i", "pos", "position"),
    "position": ("pos", "idx", "place"),
    "i": ("index", "idx", "k"),
    "key": ("k", "name"),
    "char": ("ch", "c", "letter", "character"),
    "letter": ("ch", "char"),
    "word": ("w", "token", "term"),
    "words": ("tokens", "terms"),
    "line": ("row_text", "text_line", "ln"),
    "lines": ("rows_of_text", "text_lines"),
    "row": ("r", "record_row", "current_row"),
    "column": ("col", "c"),
    "current": ("cur", "node_now", "active"),
    "previous": ("prev", "last_seen", "before"),
    "best": ("top", "winner", "best_so_far"),
    "seen": ("visited", "known", "already"),
    "left": ("lo", "start", "first"),
    "right": ("hi", "end", "second"),
    "low": ("lo", "lower"),
    "high": ("hi", "upper"),
    "middle": ("mid", "centre"),
    "mid": ("middle", "centre"),
    "parts": ("pieces", "fields", "chunks"),
    "part": ("piece", "chunk"),
    "pieces": ("parts", "segments"),
    "groups": ("buckets", "grouped"),
    "group": ("bucket", "batch"),
    "number": ("num", "n", "value"),
    "pair": ("couple", "both"),
    "queue": ("pending", "todo", "frontier"),
    "stack": ("pending", "open_items", "todo"),
    "start": ("begin", "first"),
    "end": ("stop", "last"),
    "size": ("length", "width"),
    "match": ("found", "m", "hit"),
    "name": ("label", "title"),
    "names": ("labels", "titles"),
    "text": ("string", "content"),
    "remainder": ("rest", "left_over"),
    "digit": ("d", "figure"),
    "step": ("move", "delta"),
    "score": ("points", "mark"),
    "node": ("vertex", "current_node"),
    "neighbour": ("adjacent", "other"),
    "longest": ("best", "max_so_far"),
    "shortest": ("best", "min_so_far"),
    "kept": ("remaining", "chosen"),
    "table": ("lookup", "grid"),
    "cleaned": ("tidy", "normalized"),
    "merged": ("combined", "joined"),
}


def rename_locals(text: str, draw: Draw, share: float) -> str:
    """Rename a share of the local variables that can be renamed."""
    tree = ast.parse(text)
    taken = set(words(text)) | set(dir(builtins))
    source, edits = ProgramSource(text), list[Edit]()
    for function in _outer_functions(tree):
        names = sorted(_free_to_rename(function) - set(bound_names(text)))
        for name in names:
            others = [other for other in _OTHER_NAMES.get(name, ()) if other not in taken]
            if not others or not draw.chance(share):
                continue
            other = draw.one(others)
            taken.add(other)
            for node in ast.walk(function):
                if isinstance(node, ast.Name) and node.id == name:
                    edits.append((source.begin(node), source.end(node), other.encode()))
    return source.edited(edits)


def _outer_functions(node: ast.AST) -> Iterator[FUNCTIONS]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTIONS):
            yield child
        else:
            yield from _outer_functions(child)


def _free_to_rename(function: FUNCTIONS) -> set[str]:
    """Names that a function assigns and reads only in plain expressions."""
    assigned: set[str] = set()
    fixed: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            if node.id in _READ_NAMES:
                return set()
            if isinstance(node.ctx, ast.Store):
                assigned.add(node.id)
        elif isinstance(node, ast.arg):
            fixed.add(node.arg)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            fixed.update(node.names)
        elif isinstance(node, ast.JoinedStr):  # positions inside are wrong before Python 3.12
            fixed.update(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
            fixed.add(node.name or "")
        elif isinstance(node, ast.MatchMapping):
            fixed.add(node.rest or "")
        elif isinstance(node, Definition):
            fixed.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            fixed.update(alias.asname or alias.name for alias in node.names)
    return assigned - fixed
