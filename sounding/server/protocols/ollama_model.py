"""Ollama's read-only routes about the model: show, tags, ps, version."""

from datetime import UTC, datetime
from typing import ClassVar

from starlette.requests import Request
from starlette.responses import Response

from sounding.server.http.streaming import Endpoint, JSONAnswer
from sounding.server.http.wire import Json, Wire
from sounding.server.service import Service
from sounding.text.markup import ASSISTANT, FIM_BEGIN, FIM_END, FIM_HOLE, USER

SHOW_ROUTE = "/api/show"
_VERSION = "0.12.0"  # of the protocol: clients infer the server's features from it
_TAG = ":latest"
_NEVER = "2999-12-31T23:59:59Z"  # when the model is unloaded

# Equivalent to what the server does instead of a template. Clients search it for a model's
# features, and for `.Suffix` before they send a suffix.
_PROMPT = f"{{{{ .System }}}}{USER}{{{{ .Prompt }}}}{ASSISTANT}"
_FILLING = (
    f"{{{{- if .Suffix }}}}{FIM_BEGIN}{{{{ .Prompt }}}}{FIM_HOLE}{{{{ .Suffix }}}}{FIM_END}"
    f"{{{{- else }}}}{_PROMPT}{{{{- end }}}}"
)


class ShowRequest(Wire):
    accepted: ClassVar = {"verbose": "answers are always complete"}

    model: str | None = None
    name: str | None = None
    """The older name of model."""


class Show:
    """`/api/show`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, request: Request) -> Response:
        service = self._service
        asked = await service.read(request, ShowRequest)
        service.require_model(asked.model or asked.name)
        card = service.card
        capabilities = ["completion", "tools", "thinking"]
        return JSONAnswer(
            {
                "modelfile": "",
                "parameters": "",
                "template": _FILLING if service.completer else _PROMPT,
                "details": _details(service),
                "model_info": {
                    "general.architecture": card.architecture,
                    "general.parameter_count": card.parameters,
                    f"{card.architecture}.context_length": service.engine.context_tokens,
                },
                "capabilities": capabilities + (["insert"] if service.completer else []),
                "modified_at": _when(service),
            }
        )


def listings(service: Service) -> dict[str, Endpoint]:
    """Routes by path, all GET."""

    async def tags(request: Request) -> Response:
        return JSONAnswer({"models": [_listed(service, name) for name in service.listed_names]})

    async def running(request: Request) -> Response:
        loaded = {
            "expires_at": _NEVER,
            "size_vram": 0,
            "context_length": service.engine.context_tokens,
        }
        return JSONAnswer({"models": [_listed(service, service.model_name) | loaded]})

    async def version(request: Request) -> Response:
        return JSONAnswer({"version": _VERSION})

    return {"/api/tags": tags, "/api/ps": running, "/api/version": version}


def _listed(service: Service, name: str) -> Json:
    tagged = name if ":" in name else name + _TAG
    return {
        "name": tagged,
        "model": tagged,
        "modified_at": _when(service),
        "size": service.card.size_bytes,
        "digest": "",
        "details": _details(service),
    }


def _details(service: Service) -> Json:
    card = service.card
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": card.architecture,
        "families": [card.architecture],
        "parameter_size": f"{card.parameters / 1e6:.1f}M" if card.parameters else "",
        "quantization_level": card.quantization,
    }


def _when(service: Service) -> str:
    return datetime.fromtimestamp(service.began, UTC).isoformat()
