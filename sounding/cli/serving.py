"""`serve`: a model behind HTTP, for editors, agents and SDKs."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sounding.cli.completion import open_model
from sounding.loading import LoadedModel, find_model

if TYPE_CHECKING:
    from sounding.server.options import ServerOptions
    from sounding.server.service import ModelCard

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@click.command()
@click.argument("model", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0 takes a free one.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    help="What clients call the model; can be given repeatedly, '*' answers to any name.  "
    "[default: the folder's name]",
)
@click.option(
    "--api-keys",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with one key a line. Clients send one as 'Authorization: Bearer KEY' or 'x-api-key: "
    "KEY'.",
)
@click.option(
    "--without-keys",
    is_flag=True,
    help="Listen on an address that others can reach, without keys: everybody who reaches it may "
    "use it.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    help="Web page that may use the server, such as https://example.org; can be given repeatedly.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    help="Name under which a proxy or a tunnel reaches this machine's own address, as in its Host "
    "header; can be given repeatedly, '*' is any.",
)
@click.option(
    "--prefix-cache-gib",
    default=2.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Most memory for what was read of prompts that may come again.",
)
@click.option(
    "--prefix-store",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep what was read of long prompts over restarts, in this folder: a new or empty one, or "
    "that of an earlier run.",
)
@click.option(
    "--prefix-store-gib",
    default=8,
    show_default=True,
    type=click.IntRange(min=1),
    help="Most that this folder may take.",
)
@click.option(
    "--context-tokens",
    type=click.IntRange(min=16),
    help="Most tokens of prompt and answer together.  [default: what the model is made for]",
)
@click.option(
    "--infill-context-tokens",
    default=1024,
    show_default=True,
    type=click.IntRange(min=64),
    help="What a completion at the cursor sees of the text around it, its answer included.",
)
@click.option(
    "--width",
    default=16,
    show_default=True,
    type=click.IntRange(min=1),
    help="Sequences that are computed together.",
)
@click.option(
    "--thinking/--no-thinking",
    default=True,
    show_default=True,
    help="Whether a chat thinks first where its request does not say.",
)
@click.option(
    "--effort-scheme",
    type=click.Choice(["april", "0731"]),
    default="april",
    show_default=True,
    help="How the checkpoint is asked for effort; it belongs to the release.",
)
@click.option(
    "--max-requests",
    default=256,
    show_default=True,
    type=click.IntRange(min=1),
    help="Requests in progress, waiting ones included; more get a 429.",
)
@click.option(
    "--max-body-mib",
    default=32,
    show_default=True,
    type=click.IntRange(min=1),
    help="Of a request.",
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="An answer ends after this, with what there is of it.  [default: no limit]",
)
@click.option(
    "--grace-seconds",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="After SIGTERM or Ctrl-C, how long running answers may go on.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=DIR",
    help="Adapter of `sounding tune` to serve beside the model, which clients then call MODEL:NAME; "
    "can be given repeatedly.",
)
@click.option(
    "--load-adapters",
    is_flag=True,
    help="Let clients load and drop adapters by /v1/load_lora_adapter and /v1/unload_lora_adapter: "
    "they name folders of this machine.",
)
@click.option(
    "--trace",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for one JSON file per answer: its tokens, what the cache did, where time went. "
    "They contain what clients sent.",
)
def serve(
    model: str | None,
    host: str,
    port: int,
    names: tuple[str, ...],
    api_keys: Path | None,
    without_keys: bool,
    cors_origins: tuple[str, ...],
    allowed_hosts: tuple[str, ...],
    prefix_cache_gib: float,
    prefix_store: Path | None,
    prefix_store_gib: int,
    context_tokens: int | None,
    infill_context_tokens: int,
    width: int,
    thinking: bool,
    effort_scheme: str,
    max_requests: int,
    max_body_mib: int,
    max_seconds: float | None,
    grace_seconds: float,
    adapters: tuple[str, ...],
    load_adapters: bool,
    trace: Path | None,
) -> None:
    """Serve a model to editors, agents and SDKs.

    MODEL is the folder of a checkpoint with a tokenizer.json; without it the shipped model is
    served. Point a client at the address that is printed:

    \b
      OpenAI SDK, Continue, Cline, aider, Zed     http://127.0.0.1:8000/v1
      Anthropic SDK, Claude Code                  http://127.0.0.1:8000
      llama.vim, llama.vscode                     http://127.0.0.1:8000/infill
      Ollama's clients                            http://127.0.0.1:8000
      a browser, for trying it and watching it    http://127.0.0.1:8000

    \b
    Examples:
      sounding serve
      sounding serve MODEL --name deepseek-v4 --prefix-store ~/.cache/sounding/prefixes
      sounding serve MODEL --host 0.0.0.0 --api-keys keys.txt

    Ctrl-C or SIGTERM lets running answers end within the grace; a second one does not wait. What
    each protocol honours and refuses is in docs/server.md, and /openapi.json has it for programs.
    """
    from sounding.server.http.keys import Keys
    from sounding.server.http.serve import is_loopback, listen
    from sounding.server.http.serve import serve as serve_forever
    from sounding.server.options import ServerOptions
    from sounding.server.service import Service

    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(message)s")
    if api_keys is None and not without_keys and not is_loopback(host):
        raise ValueError(
            f"others can reach {host}: give --api-keys FILE, or --without-keys if everybody may "
            "use this server"
        )
    folder = find_model(model)
    keys = None if api_keys is None else Keys.from_file(api_keys)
    hosts = None
    if is_loopback(host) and "*" not in allowed_hosts:
        hosts = tuple(dict.fromkeys((*_LOOPBACK_NAMES, host, *allowed_hosts)))
    settings = ServerOptions(
        model_names=names or (Path(folder).resolve().name,),
        thinking=thinking,
        effort_scheme=effort_scheme,
        infill_context_tokens=infill_context_tokens,
        max_requests=max_requests,
        max_body_bytes=max_body_mib * 2**20,
        max_seconds=max_seconds,
        keys=keys,
        cors_origins=cors_origins,
        hosts=None if hosts is None else tuple(name.lower() for name in hosts),
        trace=trace,
    )
    named = dict(map(_named_adapter, adapters))
    listener = listen(host, port)
    opened = open_model(folder)
    engine = opened.engine(
        prefix_store.expanduser() if prefix_store else None,
        store_bytes=prefix_store_gib << 30,
        width=width,
        context_tokens=context_tokens,
        prefix_limit_bytes=round(prefix_cache_gib * 2**30),
    )
    for name, place in named.items():
        engine.adapters.load(name, opened.read_adapter(place))
    service = Service(
        *(engine, opened.tokenizer, settings, _card(opened)),
        adapters=engine.adapters,
        read_adapter=opened.read_adapter if load_adapters else None,
    )
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"
    serve_forever(
        service,
        listener,
        grace_seconds=grace_seconds,
        ready=lambda: _announce(settings, address, tuple(named)),
    )


def _named_adapter(option: str) -> tuple[str, Path]:
    from sounding.server.protocols.adapters import require_adapter_name

    name, equals, folder = option.partition("=")
    if not equals or not folder:
        raise ValueError(f"--adapter {option!r} must have the form NAME=DIR")
    require_adapter_name(name)
    return name, Path(folder)


def _announce(settings: "ServerOptions", address: str, adapters: tuple[str, ...]) -> None:
    click.echo(f"serving {settings.model_names[0]} on {address}", err=True)
    for name in adapters:
        click.echo(f"with an adapter as {settings.model_names[0]}:{name}", err=True)
    if settings.keys is None and settings.hosts is None:
        click.echo("there are no keys: everybody who reaches it may use it", err=True)


def _card(opened: LoadedModel) -> "ModelCard":
    """What clients are told of the model."""
    from sounding.server.service import ModelCard
    from sounding.weights.layout import count_parameters

    config = opened.network.config
    counts = count_parameters(config)
    size = sum(path.stat().st_size for path in opened.folder.glob("*.safetensors"))
    return ModelCard(
        parameters=counts.main,
        size_bytes=size,
        quantization=config.expert_dtype or config.torch_dtype or "",
    )
