"""The server as an application of Ray Serve, for `serve run` and `serve deploy` with a config file.

Ray's proxy takes HTTP, one ingress has the tokenizer and the protocols, and replicas have the
engines. A config that is deployed again replaces replicas one after the other, each after its
answers have ended.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from starlette.types import ASGIApp

from sounding.cluster.remote_engine import RemoteEngine
from sounding.cluster.replica import EngineSource
from sounding.cluster.serving import ReplicaOptions, ServeReplicas, engine_deployment
from sounding.loading import can_converse, find_model, load_tokenizer, open_checkpoint
from sounding.server.app import application
from sounding.server.http.keys import Keys
from sounding.server.options import ServerOptions
from sounding.server.service import Service
from sounding.text.fim_format import FimFormat


class ServeArguments(BaseModel):
    """`args` of the application in a config file; the meanings are those of `sounding serve`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    """A folder, of the same path on all machines."""
    names: tuple[str, ...] = ()
    api_keys: str | None = None
    replicas: int = 2
    most_replicas: int | None = None
    replica_cpus: int = 1
    width: int = 16
    context_tokens: int | None = None
    prefix_store: str | None = None
    grace_seconds: float = 30.0


def build(args: ServeArguments) -> Any:
    """The application: an ingress over replicas. Raises ValueError for a folder that is no model,
    and for numbers out of range."""
    folder = find_model(args.model).resolve()
    source = EngineSource(
        model=str(folder),
        prefix_store=args.prefix_store,
        settings={"width": args.width, "context_tokens": args.context_tokens},
    )
    options = ReplicaOptions(
        replicas=args.replicas,
        most_replicas=args.most_replicas,
        cpus=args.replica_cpus,
        busy_requests=args.width,
        grace_seconds=args.grace_seconds,
    )
    engines = engine_deployment(options).bind(source)
    ingress = serve.deployment(
        Ingress, name="server", num_replicas=1, ray_actor_options={"num_cpus": 0}
    )
    return ingress.bind(engines, folder, args)


@serve.ingress()
class Ingress:
    """The server's routes over the replicas behind a handle."""

    def __init__(self, handle: Any, folder: Path, args: ServeArguments) -> None:
        self._handle, self._folder, self._args = handle, folder, args

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve once the replica's event loop runs."""
        folder, args = self._folder, self._args
        longest = open_checkpoint(folder).config.max_position_embeddings
        context = min(longest, args.context_tokens or longest)
        settings = ServerOptions(
            thinking=can_converse(folder),
            model_names=args.names or (folder.name,),
            keys=None if args.api_keys is None else Keys.from_file(Path(args.api_keys)),
        )
        engine = RemoteEngine(ServeReplicas(self._handle, lambda: None), context)
        service = Service(
            engine, load_tokenizer(folder), settings, fim_format=FimFormat.from_folder(folder)
        )
        service.warm()
        return application(service)
