"""Fit the formula of `completion.ranking.confidence` on lines of held-out packages.

`scripts/fit-confidence CORPUS [--lines 600] [--model MODEL]` fits it on every second package. It
prints the coefficients for that file, and the precision on the other packages.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sounding.completion.completer import Completer
from sounding.completion.gap import Gap
from sounding.completion.prompt import CompletionSettings
from sounding.engine.sampling import SamplingParams
from sounding.evaluation.lines import Item, choose_lines, precision_table
from sounding.evaluation.measuring import limited, read_texts
from sounding.loading import LoadedModel, open_model

_PENALTY = 1e-3  # on squared coefficients of standardized features
_STEPS = 30


def observe(model: LoadedModel, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
    """Features of each generated line, and whether it was exact."""
    completer = Completer(model.tokenizer, model.fim_format, model.batch(16))
    settings = CompletionSettings()
    gaps = [Gap(item.prefix, item.suffix) for item in items]
    plans = [completer.plan(gap, "line", settings) for gap in gaps]
    for number, found in completer.run(plans, [SamplingParams()] * len(plans)):
        best, item = found[0], items[number]
        if best.confidence:
            exact = best.text.strip() == item.answer.strip()
            yield {"id": item.id, "evidence": best.evidence, "exact": exact}
        else:
            yield {"id": item.id, "evidence": None, "exact": False}


def fit(evidence: NDArray[np.float64], exact: NDArray[np.bool_]) -> tuple[float, list[float]]:
    """Intercept and coefficients of the likeliest logistic formula, by Newton's method."""
    mean, spread = evidence.mean(0), evidence.std(0) + 1e-9
    rows = np.hstack([np.ones((len(evidence), 1)), (evidence - mean) / spread])
    weights = np.zeros(rows.shape[1])
    penalty = np.full(rows.shape[1], _PENALTY * len(rows))
    penalty[0] = 0
    for _ in range(_STEPS):
        sure = 1 / (1 + np.exp(-rows @ weights))
        slope = rows.T @ (exact - sure) - penalty * weights
        curve = (rows * (sure * (1 - sure))[:, None]).T @ rows + np.diag(penalty)
        weights += np.linalg.solve(curve, slope)
    coefficients = weights[1:] / spread
    return float(weights[0] - coefficients @ mean), [float(one) for one in coefficients]


def main() -> None:
    """Run the command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--lines", type=int, default=600)
    parser.add_argument("--model")
    parser.add_argument("--rows", type=Path, help="Keep what was observed, or read it again.")
    options = parser.parse_args()
    if options.rows is not None and options.rows.exists():
        rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    else:
        texts = read_texts(options.corpus, [".py"], print)
        items = [
            item
            for cursor, seed in (("indent", 1), ("inside", 2))
            for item in limited(
                choose_lines(texts, per_file=3, cursor=cursor, seed=seed),  # type: ignore[arg-type]
                options.lines // 2,
                seed,
            )
        ]
        rows = []
        for row in observe(open_model(options.model), items):
            rows.append(row)
            if options.rows is not None:
                with options.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    packages = sorted({row["id"].partition("/")[0] for row in rows})
    fitted = set(packages[::2])
    kept = [row for row in rows if row["evidence"] is not None]
    train = [row for row in kept if row["id"].partition("/")[0] in fitted]
    intercept, coefficients = fit(
        np.array([row["evidence"] for row in train]), np.array([row["exact"] for row in train])
    )
    print(f"_COEFFICIENTS = ({', '.join(f'{one:.4f}' for one in coefficients)})")
    print(f"_INTERCEPT = {intercept:.4f}")
    others = []
    for row in rows:
        if row["id"].partition("/")[0] not in fitted:
            value = intercept + float(np.dot(coefficients, row["evidence"] or [0] * 7))
            sure = 1 / (1 + np.exp(-value)) if row["evidence"] else 0.0
            others.append({"confidence": sure, "model_exact": row["exact"]})
    for line in precision_table(others):
        print(line)


if __name__ == "__main__":
    main()
