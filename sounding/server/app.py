"""The ASGI application: routes, endpoints, middleware, and start and stop of the server."""

import contextlib
from collections.abc import AsyncIterator
from functools import cache

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from sounding.server.http import page, status
from sounding.server.http.errors import Refusal, anthropic_error, llama_error, ollama_error
from sounding.server.http.middleware import AccessMiddleware
from sounding.server.http.openapi import Operation, document
from sounding.server.http.streaming import Endpoint, JSONAnswer
from sounding.server.http.wire import Json
from sounding.server.protocols import (
    adapters,
    chat_completions,
    completions,
    infill,
    llama_completion,
    messages,
    ollama,
    ollama_chat,
    ollama_model,
    responses,
)
from sounding.server.service import Service

OPERATIONS = [
    Operation(
        chat_completions.ROUTE,
        chat_completions.ChatCompletionRequest,
        "Answer a conversation (OpenAI, DeepSeek).",
    ),
    Operation(
        completions.ROUTE, completions.CompletionRequest, "Continue text, or fill in at a cursor."
    ),
    Operation(responses.ROUTE, responses.ResponseRequest, "Answer input items (OpenAI)."),
    Operation(
        messages.ROUTE,
        messages.MessagesRequest,
        "Answer a conversation (Anthropic).",
        anthropic_error,
    ),
    Operation(
        messages.COUNT_ROUTE,
        messages.CountTokensRequest,
        "Count the tokens of a conversation.",
        anthropic_error,
        stream=None,
    ),
    Operation(infill.ROUTE, infill.InfillRequest, "Fill in at a cursor (llama.cpp).", llama_error),
    Operation(
        llama_completion.ROUTE,
        llama_completion.LlamaCompletionRequest,
        "Continue text (llama.cpp).",
        llama_error,
    ),
    Operation(
        ollama.ROUTE,
        ollama.GenerateRequest,
        "Answer, continue or fill in (Ollama).",
        ollama_error,
        stream="application/x-ndjson",
    ),
    Operation(
        ollama_chat.ROUTE,
        ollama_chat.ChatRequest,
        "Answer a conversation (Ollama).",
        ollama_error,
        stream="application/x-ndjson",
    ),
    Operation(
        ollama_model.SHOW_ROUTE,
        ollama_model.ShowRequest,
        "Describe the model.",
        ollama_error,
        stream=None,
    ),
]

ADAPTER_OPERATIONS = [
    Operation(
        adapters.LOAD_ROUTE,
        adapters.LoadAdapterRequest,
        "Load an adapter (vLLM).",
        stream=None,
    ),
    Operation(
        adapters.DROP_ROUTE,
        adapters.DropAdapterRequest,
        "Drop an adapter (vLLM).",
        stream=None,
    ),
]

# DeepSeek's own paths for routes that are under /v1 here: its clients need only a new address.
ALIASES = {
    "/chat/completions": chat_completions.ROUTE,
    "/completions": completions.ROUTE,
    "/responses": responses.ROUTE,
    "/beta/chat/completions": chat_completions.ROUTE,
    "/beta/completions": completions.ROUTE,
    "/anthropic/v1/messages": messages.ROUTE,
    "/anthropic/v1/messages/count_tokens": messages.COUNT_ROUTE,
}


def application(service: Service) -> ASGIApp:
    """Serve one engine, as an ASGI application."""
    posts: dict[str, Endpoint] = {
        chat_completions.ROUTE: chat_completions.ChatCompletions(service),
        completions.ROUTE: completions.Completions(service),
        responses.ROUTE: responses.Responses(service),
        messages.ROUTE: messages.Messages(service),
        messages.COUNT_ROUTE: messages.CountTokens(service),
        infill.ROUTE: infill.Infill(service),
        llama_completion.ROUTE: llama_completion.LlamaCompletion(service),
        ollama.ROUTE: ollama.OllamaGenerate(service),
        ollama_chat.ROUTE: ollama_chat.OllamaChat(service),
        ollama_model.SHOW_ROUTE: ollama_model.Show(service),
    }
    operations = OPERATIONS
    if service.adapters is not None and service.read_adapter is not None:
        posts[adapters.LOAD_ROUTE] = adapters.LoadAdapter(service, service.read_adapter)
        posts[adapters.DROP_ROUTE] = adapters.DropAdapter(service)
        operations = [*OPERATIONS, *ADAPTER_OPERATIONS]
    gets = status.endpoints(service) | ollama_model.listings(service)
    paths = [path.replace(":path", "") for path in gets]

    @cache  # built when first asked for, not at start-up
    def described() -> Json:
        return document(operations, paths)

    async def openapi(request: Request) -> Response:
        return JSONAnswer(described())

    gets |= {"/openapi.json": openapi} | page.endpoints()
    routes = [
        *(_route(path, endpoint, "GET") for path, endpoint in gets.items()),
        *(_route(path, endpoint, "POST") for path, endpoint in posts.items()),
        *(Route(alias, _Handler(path, posts[path], "POST")) for alias, path in ALIASES.items()),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        yield
        await service.ledger.idle()
        service.close()

    router = Router(routes, redirect_slashes=False, default=_nothing_there, lifespan=lifespan)
    return AccessMiddleware(router, service)


def _route(path: str, endpoint: Endpoint, method: str) -> Route:
    return Route(path, _Handler(path, endpoint, method))


class _Handler:
    """Accept one HTTP method on a route; answer any other with 405."""

    def __init__(self, path: str, endpoint: Endpoint, method: str) -> None:
        self._path, self._endpoint = path, endpoint
        self._methods = (method, "HEAD") if method == "GET" else (method,)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["sounding.route"] = self._path
        if scope["method"] not in self._methods:
            raise Refusal(
                405,
                f"{self._path} takes {self._methods[0]}, not {scope['method'][:20]}",
                code="method_not_allowed",
                headers={"allow": ", ".join(self._methods)},
            )
        response = await self._endpoint(Request(scope, receive))
        await response(scope, receive, send)


async def _nothing_there(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        raise Refusal(404, f"there is no route {scope['path'][:200]}", code="not_found")
