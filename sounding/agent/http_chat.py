"""A server that speaks OpenAI's chat completions as something to chat with."""

import http.client
import json
import urllib.parse
from collections.abc import Sequence
from typing import Any

from sounding.agent.loop import Message, Turn

_SECONDS = 600.0


class HTTPChat:
    """Answers conversations over HTTP."""

    def __init__(
        self,
        url: str,
        *,
        temperature: float,
        top_p: float,
        max_tokens: int,
        model: str | None = None,
        key: str | None = None,
    ) -> None:
        """`url` is the server's, such as http://127.0.0.1:8000. Raises ValueError for another.

        `model` names one of several.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r} is no address such as http://127.0.0.1:8000")
        self._host, self._port = parts.hostname, parts.port or 80
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
        self._body: dict[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
        }
        if model is not None:
            self._body["model"] = model
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    def __call__(
        self, messages: Sequence[Message], tools: Sequence[Message], *, thinking: bool, seed: int
    ) -> Turn:
        """See `Chat`. Raises OSError where there is no answer, and ValueError for a refusal.

        A conversation that has outgrown the server's context ends as if it were cut off.
        """
        body: dict[str, Any] = {
            **self._body,
            "messages": list(messages),
            "thinking": {"type": "enabled" if thinking else "disabled"},
            "seed": seed,
        }
        if tools:
            body["tools"] = list(tools)
        status, text = self._post(body)
        if status == 400 and "context_length_exceeded" in text:
            return Turn({"role": "assistant", "content": ""}, finished=False)
        if status != 200:
            raise ValueError(f"{self._path} answered {status}: {text[:200]}")
        try:
            choice = json.loads(text)["choices"][0]
            message: dict[str, Any] = {
                name: choice["message"].get(name) or empty
                for name, empty in (("content", ""), ("reasoning_content", ""), ("tool_calls", []))
            }
            reason = choice["finish_reason"]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(f"{self._path} answered without a message: {text[:200]}") from None
        return Turn({"role": "assistant", **message}, finished=reason in ("stop", "tool_calls"))

    def _post(self, body: dict[str, Any]) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_SECONDS)
        try:
            connection.request("POST", self._path, json.dumps(body), self._headers)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            where = f"{self._host}:{self._port}"
            raise OSError(f"{where} gave no whole answer ({error}); is `serve` running?") from error
        finally:
            connection.close()
