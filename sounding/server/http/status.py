"""Read-only routes: `/health`, `/status`, `/metrics`, and the list of models."""

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from sounding.server.http.streaming import Endpoint, JSONAnswer
from sounding.server.http.wire import Json
from sounding.server.prometheus import CONTENT_TYPE
from sounding.server.service import Service


def endpoints(service: Service) -> dict[str, Endpoint]:
    """Routes by path, all GET."""

    async def health(request: Request) -> Response:
        word = "draining" if service.draining else "ok"
        return JSONAnswer({"status": word}, status_code=503 if service.draining else 200)

    async def status(request: Request) -> Response:
        return JSONAnswer(service.status())

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.render(), headers={"content-type": CONTENT_TYPE})

    async def models(request: Request) -> Response:
        data = [_listed(service, name) for name in service.listed_names]
        # The last three are Anthropic's pagination: there is one page.
        ends = {"has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}
        return JSONAnswer({"object": "list", "data": data, **ends})

    async def model(request: Request) -> Response:
        return JSONAnswer(_listed(service, service.require_model(request.path_params["name"])))

    async def props(request: Request) -> Response:
        """llama.cpp's route, from which its clients read the length of the context."""
        context = service.engine.context_tokens
        return JSONAnswer(
            {
                "default_generation_settings": {"n_ctx": context},
                "model_alias": service.model_name,
                "total_slots": service.settings.max_requests,
                "chat_template": "",
            }
        )

    return {
        "/health": health,
        "/props": props,
        "/v1/props": props,
        "/status": status,
        "/metrics": metrics,
        "/v1/models": models,
        "/v1/models/{name:path}": model,
    }


def _listed(service: Service, name: str) -> Json:
    """A model in OpenAI's and Anthropic's lists at once; clients read the fields they know."""
    return {
        "id": name,
        "object": "model",
        "created": int(service.began),
        "created_at": datetime.fromtimestamp(int(service.began), UTC).isoformat(),
        "owned_by": "sounding",
        "type": "model",
        "display_name": name,
        "context_length": service.engine.context_tokens,
        "max_model_len": service.engine.context_tokens,
        "trained_context_length": service.card.trained_context_tokens,
    }
