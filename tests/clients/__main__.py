"""`scripts/try-clients`: install the newest real clients, try each, print and record a table."""

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.clients.catalogue import CLIENTS, Client, Place
from tests.clients.table import RESULTS, SCENARIOS, results, table, write_page
from tests.clients.trial import try_client


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/try-clients",
        description="Install the newest release of each client below a temporary folder, hold a "
        "conversation, run a tool, leave an answer and lose the server with each, and print what "
        "came of it. A scripted model answers, so that only the protocol is tried.",
    )
    parser.add_argument("--only", metavar="TEXT", help="clients whose name has TEXT in it")
    parser.add_argument("--folder", type=Path, help="where to install, kept (default: temporary)")
    parser.add_argument("--record", action="store_true", help="write the rows to docs/clients.json")
    asked = parser.parse_args()
    chosen = [c for c in CLIENTS if asked.only is None or asked.only.lower() in c.name.lower()]
    if not chosen:
        parser.error(f"no client has {asked.only!r} in its name: {[c.name for c in CLIENTS]}")
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="sounding-clients-"))
    rows = []
    try:
        for client in chosen:
            rows.append(_row(client, folder.resolve()))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    finally:
        if asked.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(table({"tried": rows, "held": []}))
    if asked.record:
        _record(rows)
    sys.exit(any(row[s].startswith("fails") for row in rows for s in SCENARIOS))


def _row(client: Client, folder: Path) -> dict[str, str]:
    try:
        place = _install(client, folder)
        version = _version(client, place)
        outcomes = try_client(client, place)
    except subprocess.CalledProcessError as error:
        version = "none"
        outcomes = dict.fromkeys(SCENARIOS, f"fails: {error}")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    row = {"name": client.name, "version": version, "route": client.route, "date": today}
    return row | outcomes


def _install(client: Client, folder: Path) -> Place:
    where = folder / f"{client.registry}-{client.packages[0].replace('/', '-')}"
    if not where.exists():
        where.mkdir(parents=True)
        print(f"installing {' '.join(client.packages)} ...", file=sys.stderr, flush=True)
        if client.registry == "npm":
            quiet = ["--no-fund", "--no-audit", "--loglevel=error"]
            packages = [f"{package}@latest" for package in client.packages]
            _call("npm", "install", *quiet, "--prefix", str(where), *packages)
        else:
            _call(sys.executable, "-m", "venv", str(where / "venv"))
            pip = [str(where / "venv/bin/pip"), "--quiet", "--disable-pip-version-check"]
            _call(*pip, "install", *client.packages)
    return Place(where)


def _version(client: Client, place: Place) -> str:
    package = client.packages[0]
    if client.registry == "npm":
        about = place.folder / "node_modules" / package / "package.json"
        return str(json.loads(about.read_text(encoding="utf-8"))["version"])
    code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
    python = place.tool("python")
    return _call(python, "-c", code, package.partition("[")[0]).strip()


def _call(*command: str) -> str:
    return subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ).stdout


def _record(rows: list[dict[str, str]]) -> None:
    """Replace the rows of the clients that were tried, and keep the others."""
    found: dict[str, Any] = results() if RESULTS.exists() else {"tried": [], "held": []}
    by_key = {(row["name"], row["route"]): row for row in (*found["tried"], *rows)}
    order = {(client.name, client.route): at for at, client in enumerate(CLIENTS)}
    found["tried"] = sorted(by_key.values(), key=lambda row: order[row["name"], row["route"]])
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_page(found)


if __name__ == "__main__":
    main()
