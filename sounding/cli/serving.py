"""`serve`: a model behind HTTP, for editors, agents and SDKs."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sounding.cli.completion import drafter_option, open_model
from sounding.cli.model_argument import model_argument
from sounding.cli.sizes import memory_option
from sounding.loading import can_converse, find_model, trained_context

if TYPE_CHECKING:
    from sounding.cluster.replica import EngineSource
    from sounding.cluster.serving import ReplicaOptions
    from sounding.config import ModelConfig
    from sounding.server.http.keys import Keys
    from sounding.server.options import ServerOptions
    from sounding.server.service import ModelCard, Service

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@click.command()
@model_argument
@memory_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0 selects a free port.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    help="Name of the model in requests; can be given repeatedly, '*' accepts any name.  "
    "[default: the folder's name]",
)
@click.option(
    "--api-keys",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with one key per line. Clients send one as 'Authorization: Bearer KEY' or "
    "'x-api-key: KEY'.",
)
@click.option(
    "--without-keys",
    is_flag=True,
    help="Listen without keys on an address that other machines can reach: anyone there can use "
    "the server.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    help="Origin of a web page that may use the server, such as https://example.org; can be "
    "given repeatedly.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    help="Host header to accept on a loopback address, such as that of a proxy or a tunnel; can be "
    "given repeatedly, '*' accepts any.",
)
@click.option(
    "--prefix-cache-gib",
    default=2.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Memory limit of the prefix cache.",
)
@click.option(
    "--prefix-store",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep prefixes of long prompts on disk, in this folder, across restarts. The folder must "
    "be new, empty, or that of an earlier run.",
)
@click.option(
    "--prefix-store-gib",
    default=8,
    show_default=True,
    type=click.IntRange(min=1),
    help="Size limit of this folder.",
)
@click.option(
    "--context-tokens",
    type=click.IntRange(min=16),
    help="Maximum number of tokens of prompt and answer.  [default: the model's context]",
)
@click.option(
    "--infill-context-tokens",
    default=1024,
    show_default=True,
    type=click.IntRange(min=64),
    help="Context of a completion at the cursor, in tokens, including its answer.",
)
@click.option(
    "--width",
    default=16,
    show_default=True,
    type=click.IntRange(min=1),
    help="Maximum number of sequences in a step.",
)
@click.option(
    "--thinking/--no-thinking",
    default=None,
    help="Default of chat requests that do not specify it.  [default: thinking, if the model has "
    "learned to converse]",
)
@click.option(
    "--effort-scheme",
    type=click.Choice(["april", "0731"]),
    default="april",
    show_default=True,
    help="Texts that request effort; they depend on the release of the checkpoint.",
)
@click.option(
    "--max-requests",
    default=256,
    show_default=True,
    type=click.IntRange(min=1),
    help="Maximum number of requests in progress or waiting; further ones get 429.",
)
@click.option(
    "--max-body-mib",
    default=32,
    show_default=True,
    type=click.IntRange(min=1),
    help="Size limit of a request.",
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Time limit of an answer, which then ends with the text so far.  [default: no limit]",
)
@click.option(
    "--grace-seconds",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Time for running answers to finish after SIGTERM or Ctrl-C.",
)
@drafter_option
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=DIR",
    help="Adapter of `sounding tune` to serve beside the model, under the name MODEL:NAME; can be "
    "given repeatedly.",
)
@click.option(
    "--load-adapters",
    is_flag=True,
    help="Let clients load and drop adapters by /v1/load_lora_adapter and /v1/unload_lora_adapter: "
    "they name folders of this machine.",
)
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    help="Run the model in so many processes by Ray, on this machine or those of a cluster; "
    "requests go where their prefix is cached (docs/clusters.md).  [default: one engine, in this "
    "process]",
)
@click.option(
    "--most-replicas",
    type=click.IntRange(min=1),
    help="With --replicas: add replicas up to this number while requests queue, and remove them "
    "again.",
)
@click.option(
    "--replica-cpus",
    type=click.IntRange(min=1),
    help="With --replicas: cores of each.  [default: this machine's, shared evenly]",
)
@click.option(
    "--ray-address",
    metavar="ADDRESS",
    help="With --replicas: a running cluster, 'auto' for the one that this machine is part of.  "
    "[default: a cluster of this machine alone, which ends with the server]",
)
@click.option(
    "--trace",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for one JSON file per answer with its tokens, cache hits and times. The files "
    "contain the prompts.",
)
def serve(
    model: str | None,
    memory_bytes: int | None,
    host: str,
    port: int,
    names: tuple[str, ...],
    api_keys: Path | None,
    without_keys: bool,
    allowed_hosts: tuple[str, ...],
    prefix_cache_gib: float,
    prefix_store: Path | None,
    prefix_store_gib: int,
    context_tokens: int | None,
    width: int,
    max_body_mib: int,
    grace_seconds: float,
    adapters: tuple[str, ...],
    load_adapters: bool,
    thinking: bool | None,
    drafter: str | None,
    replicas: int | None,
    most_replicas: int | None,
    replica_cpus: int | None,
    ray_address: str | None,
    **options: Any,
) -> None:
    """Serve a model to editors, agents and SDKs.

    MODEL is the folder of a checkpoint with a tokenizer.json; without it the shipped model is
    served. Point a client at the address that is printed:

    \b
      OpenAI SDK, Continue, Cline, aider, Zed     http://127.0.0.1:8000/v1
      Anthropic SDK, Claude Code                  http://127.0.0.1:8000
      llama.vim, llama.vscode                     http://127.0.0.1:8000/infill
      Ollama's clients                            http://127.0.0.1:8000
      a browser, to try and to monitor the server  http://127.0.0.1:8000

    \b
    Examples:
      sounding serve
      sounding serve MODEL --name deepseek-v4 --prefix-store ~/.cache/sounding/prefixes
      sounding serve MODEL --host 0.0.0.0 --api-keys keys.txt
      sounding serve MODEL --replicas 2

    Ctrl-C or SIGTERM starts the drain: running answers may finish within --grace-seconds; a second
    signal cancels them. docs/server.md and /openapi.json list the fields that each protocol
    honours, ignores and refuses.
    """
    from sounding.cluster.replica import EngineSource
    from sounding.server.http.serve import listen
    from sounding.server.http.serve import serve as serve_forever
    from sounding.server.options import ServerOptions

    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(message)s")
    keys = _keys(host, api_keys, without_keys=without_keys)
    folder = find_model(model)
    settings = ServerOptions(
        thinking=can_converse(folder) if thinking is None else thinking,
        model_names=names or (Path(folder).resolve().name,),
        max_body_bytes=max_body_mib * 2**20,
        keys=keys,
        hosts=_hosts(host, allowed_hosts),
        **options,
    )
    named = dict(map(_named_adapter, adapters))
    source = EngineSource(
        model=str(folder.resolve()),
        prefix_store=str(prefix_store.expanduser().resolve()) if prefix_store else None,
        memory_bytes=memory_bytes,
        store_bytes=prefix_store_gib << 30,
        adapters={name: str(place.resolve()) for name, place in named.items()},
        drafter=str(Path(drafter).resolve()) if drafter and drafter != "none" else drafter,
        settings={
            "width": width,
            "context_tokens": context_tokens,
            "prefix_limit_bytes": round(prefix_cache_gib * 2**30),
        },
    )
    wanted = _replica_options(
        replicas, most_replicas, replica_cpus, ray_address, width, grace_seconds,
        load_adapters=load_adapters,
    )  # fmt: skip
    listener = listen(host, port)
    if wanted is None:
        service = _one_engine(source, settings, load_adapters=load_adapters)
    else:
        service = _replicated(source, settings, wanted, ray_address)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"
    serve_forever(
        service,
        listener,
        grace_seconds=grace_seconds,
        ready=lambda: _announce(settings, address, service.card, tuple(named)),
    )


def _replica_options(
    replicas: int | None,
    most: int | None,
    cpus: int | None,
    address: str | None,
    width: int,
    grace_seconds: float,
    *,
    load_adapters: bool,
) -> "ReplicaOptions | None":
    """None for one engine in this process. Raises ValueError for options that exclude each other,
    and where Ray is missing."""
    from sounding.cluster import require_ray
    from sounding.cluster.serving import ReplicaOptions

    if replicas is None:
        given = {"--most-replicas": most, "--replica-cpus": cpus, "--ray-address": address}
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{name} {value} needs --replicas: how many there are to begin with"
                )
        return None
    require_ray("--replicas")
    if load_adapters:
        raise ValueError(
            "--load-adapters works with one engine: a replica that starts later would not have "
            "what was loaded; with --replicas name the adapters with --adapter"
        )
    return ReplicaOptions(
        replicas=replicas,
        most_replicas=most,
        cpus=cpus,
        busy_requests=width,
        grace_seconds=grace_seconds,
    )


def _one_engine(
    source: "EngineSource", settings: "ServerOptions", *, load_adapters: bool
) -> "Service":
    """A service whose engine runs in this process."""
    from sounding.server.service import Service

    opened = open_model(source.model, source.memory_bytes, source.drafter)
    engine = source.engine_of(opened)
    return Service(
        *(engine, opened.tokenizer, settings, _card(opened.folder, opened.network.config)),
        opened.fim_format,
        adapters=engine.adapters,
        read_adapter=opened.read_adapter if load_adapters else None,
    )


def _replicated(
    source: "EngineSource",
    settings: "ServerOptions",
    options: "ReplicaOptions",
    address: str | None,
) -> "Service":
    """A service whose engines run in processes of Ray; this one has the tokenizer alone."""
    from sounding.cluster.remote_engine import AdapterNames
    from sounding.cluster.serving import start_replicas
    from sounding.loading import load_tokenizer, open_checkpoint
    from sounding.server.service import Service
    from sounding.text.fim_format import FimFormat

    folder = Path(source.model)
    tokenizer, config = load_tokenizer(folder), open_checkpoint(folder).config
    click.echo(f"starting {options.replicas} replicas", err=True)
    engine = start_replicas(source, options, address)
    return Service(
        *(engine, tokenizer, settings, _card(folder, config), FimFormat.from_folder(folder)),
        adapters=AdapterNames(list(source.adapters)),
    )


def _named_adapter(option: str) -> tuple[str, Path]:
    from sounding.server.protocols.adapters import require_adapter_name

    name, equals, folder = option.partition("=")
    if not equals or not folder:
        raise ValueError(f"--adapter {option!r} must have the form NAME=DIR")
    require_adapter_name(name)
    return name, Path(folder)


def _keys(host: str, path: Path | None, *, without_keys: bool) -> "Keys | None":
    """The API keys. Raises ValueError if other machines can reach a server without keys."""
    from sounding.server.http.keys import Keys
    from sounding.server.http.serve import is_loopback

    if path is None and not without_keys and not is_loopback(host):
        raise ValueError(
            f"other machines can reach {host}: give --api-keys FILE, or --without-keys to let "
            "anyone use the server"
        )
    return None if path is None else Keys.from_file(path)


def _hosts(host: str, allowed: tuple[str, ...]) -> tuple[str, ...] | None:
    """Accepted Host headers: on a loopback address its own names and those allowed, else any."""
    from sounding.server.http.serve import is_loopback

    if not is_loopback(host) or "*" in allowed:
        return None
    return tuple(dict.fromkeys(name.lower() for name in (*_LOOPBACK_NAMES, host, *allowed)))


def _announce(
    settings: "ServerOptions", address: str, card: "ModelCard", adapters: tuple[str, ...]
) -> None:
    click.echo(f"serving {settings.model_names[0]} on {address}", err=True)
    for name in adapters:
        click.echo(f"with an adapter as {settings.model_names[0]}:{name}", err=True)
    if card.trained_context_tokens is not None:
        length = f"{card.trained_context_tokens:,}"
        click.echo(
            f"trained on sequences of up to {length} tokens; prompts may be longer", err=True
        )
    if not card.converses:
        click.echo("this is a base model: it completes code and is not trained to chat", err=True)
    if settings.keys is None and settings.hosts is None:
        click.echo("no API keys: anyone who can reach this address can use the server", err=True)


def _card(folder: Path, config: "ModelConfig") -> "ModelCard":
    """The description of the model for clients."""
    from sounding.server.service import ModelCard
    from sounding.weights.layout import count_parameters

    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return ModelCard(
        parameters=count_parameters(config).main,
        size_bytes=size,
        quantization=config.expert_dtype or config.torch_dtype or "",
        converses=can_converse(folder),
        trained_context_tokens=trained_context(folder),
    )
