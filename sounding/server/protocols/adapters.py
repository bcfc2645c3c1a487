"""Loading and dropping adapters while the server runs: vLLM's two routes.

Only where the operator allows it: loading names a folder of the server's machine.
"""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from starlette.requests import Request
from starlette.responses import Response

from sounding.engine.adapters import Adapters
from sounding.server.http.errors import Refusal
from sounding.server.http.streaming import JSONAnswer
from sounding.server.http.wire import Wire
from sounding.server.service import Service
from sounding.weights.adapters import Adapter

LOAD_ROUTE, DROP_ROUTE = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


class LoadAdapterRequest(Wire):
    accepted: ClassVar = {"lora_int_id": "adapters go by their names"}

    lora_name: str
    """What follows the model's name and a colon in `model`."""
    lora_path: str
    """A folder of the server's machine, such as `PROJECT/.sounding/adapter`."""


class DropAdapterRequest(Wire):
    accepted: ClassVar = {"lora_int_id": "adapters go by their names"}

    lora_name: str


class LoadAdapter:
    """`/v1/load_lora_adapter`; one of the same name is replaced."""

    def __init__(self, service: Service, read: Callable[[Path], Adapter]) -> None:
        self._service, self._read = service, read

    async def __call__(self, request: Request) -> Response:
        asked = await self._service.read(request, LoadAdapterRequest)
        adapters = self._service.adapters
        assert isinstance(adapters, Adapters), "served only where the engine loads them"

        def load() -> None:
            require_adapter_name(asked.lora_name)
            adapters.load(asked.lora_name, self._read(Path(asked.lora_path)))

        try:
            await self._service.threads.run(load)
        except (ValueError, OSError) as error:
            raise Refusal(400, str(error), param="lora_path") from None
        return JSONAnswer({"loaded": f"{self._service.model_name}:{asked.lora_name}"})


class DropAdapter:
    """`/v1/unload_lora_adapter`; requests under way end with it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, request: Request) -> Response:
        asked = await self._service.read(request, DropAdapterRequest)
        adapters = self._service.adapters
        assert isinstance(adapters, Adapters), "served only where the engine loads them"
        try:
            adapters.drop(asked.lora_name)
        except ValueError as error:
            raise Refusal(404, str(error), param="lora_name") from None
        return JSONAnswer({"dropped": f"{self._service.model_name}:{asked.lora_name}"})


def require_adapter_name(name: str) -> None:
    """Raise ValueError for a name that a request could not ask for."""
    if not name or name == "latest" or ":" in name or not name.isprintable() or len(name) > 80:
        raise ValueError(
            f"an adapter cannot be called {name[:80]!r}: names have 1 to 80 printable characters, "
            "no colon, and 'latest' is what clients call the model itself"
        )
