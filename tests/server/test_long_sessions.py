"""Sessions of twenty turns as agents send them: what was read or written once is not read again.

Each turn sends the whole history, as Claude Code 2.1.332 and Codex CLI 0.171.0 did on 1 December
2026: markers that move, a first line that changes, thoughts left out or sealed, arguments written
anew. From the second turn on at least 99 % of the tokens that the request before it or its answer
held must be hits, counted by the engine.

Catches: a prompt that depends on the turn's number or place; an answer encoded into other tokens
than the model wrote; reasoning lost with the client's history; states cached too early in a prompt.
"""

import json
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import pytest
import torch

from sounding.engine.engine import Engine
from sounding.engine.requests import EngineLike, EngineStats, GenerationRequest, Stream
from sounding.engine.settings import EngineSettings
from sounding.presets import tiny
from sounding.server.options import ServerOptions
from sounding.text.tokenizer import Tokenizer
from tests.engine.scripted import small_tokenizer
from tests.networks import as_network, make_network
from tests.server.live import Live, live, post

TURNS = 20
Keeps = Literal["seal", "husk", "nothing"]
"""What a client sends back of a thought: its sealed text as it came, the item without any text, or
no item at all."""
PROMPT = "You are an agent. Change files with the tools, and say briefly what you did. " * 8
SCHEMA = {
    "type": "object",
    "properties": {"command": {"type": "string"}, "lines": {"type": "array"}},
    "required": ["command"],
}
ANSWERS = (
    "I look first.",
    "Done: `x = 1`,  with two blanks and a tab\there.\n\n",
    "Ω ≈ naïve 𝛼 — «done»",
    "",
)
COMMANDS = ("ls -la", 'echo "a\\nb" > c.txt', "cat <<E\n1\n\n2\nE", "")


@dataclass
class Dictated:
    """An engine whose model writes what it is told, in tokens cut at random places."""

    engine: Engine
    tokenizer: Tokenizer
    script: Callable[[int], str]
    requests: list[GenerationRequest] = field(default_factory=list)
    written: list[list[int]] = field(default_factory=list)

    @property
    def context_tokens(self) -> int:
        return self.engine.context_tokens

    def check(self, request: GenerationRequest) -> object:
        return self.engine.check(request)

    def submit(self, request: GenerationRequest) -> Stream:
        text, tokens = self.script(len(self.requests)), list[int]()
        dice = random.Random(len(self.requests))
        while text:
            size = dice.randint(1, 12)
            tokens += self.tokenizer.encode(text[:size])
            text = text[size:]
        self.requests.append(request)
        self.written.append(tokens)
        answer = Dictation([*tokens, self.tokenizer.eos_id])
        return self.engine.submit(replace(request, answer=answer))

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def close(self, grace_seconds: float = 0.0) -> None:
        self.engine.close(grace_seconds)


class Dictation:
    """A rule that leaves one token to choose from."""

    def __init__(self, tokens: list[int]) -> None:
        self._left = tokens[::-1]

    def allowed(self) -> Collection[int]:
        return self._left[-1:]

    def push(self, token: int, logprob: float) -> bool:
        assert token == self._left.pop()
        return bool(self._left)


def calling(name: str, number: int) -> str:
    """A call in the prompt's format, with a string and a list."""
    command = COMMANDS[number % len(COMMANDS)]
    return (
        f'\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="{name}">\n'
        f'<｜DSML｜parameter name="command" string="true">{command}</｜DSML｜parameter>\n'
        f'<｜DSML｜parameter name="lines" string="false">[{number}, 1.50, {{"b": 1, "a": null}}]'
        "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
    )


def turn_text(name: str, thinks: bool) -> Callable[[int], str]:
    """Two turns of three call a tool."""

    def script(number: int) -> str:
        thought = f"Turn {number}: {'so ' * (number % 4)}on.</think>" if thinks else ""
        said = ANSWERS[number % len(ANSWERS)] or ("" if number % 3 < 2 else "Yes.")
        return thought + said + (calling(name, number) if number % 3 < 2 else "")

    return script


class Claude:
    """What Claude Code sends: `messages` of one session, and the next after an answer."""

    path, tool = "/v1/messages?beta=true", "Bash"

    def __init__(self, thinks: bool, keeps: Keeps) -> None:
        self.thinks, self.keeps = thinks, keeps
        reminder = "<system-reminder>\nBe brief.\n</system-reminder>"
        parts = [{"type": "text", "text": reminder}, {"type": "text", "text": "Begin."}]
        self.messages: list[Any] = [
            {"role": "user", "content": parts},
            {"role": "system", "content": "# Environment\nA folder."},
        ]

    def body(self, turn: int) -> dict[str, Any]:
        line = f"x-anthropic-billing-header: cc_version=2.1.332.{turn:03x}; cch={turn:05x};"
        cached = {"cache_control": {"type": "ephemeral"}}
        deferred = {"name": "DeferredToolPlaceholder", "description": "d", "defer_loading": True}
        return {
            "model": "nano",
            "system": [{"type": "text", "text": line}, {"type": "text", "text": PROMPT, **cached}],
            "messages": [*self.messages[:-1], self._marked(self.messages[-1], cached)],
            "tools": [
                {"name": "Bash", "description": "Run.", "input_schema": SCHEMA},
                deferred | {"input_schema": {"type": "object", "properties": {}}},
            ],
            "metadata": {"user_id": f'{{"session_id":"{turn}"}}'},
            "max_tokens": 400,
            "thinking": {"type": "adaptive", "display": "omitted"}
            if self.thinks
            else {"type": "disabled"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "output_config": {"effort": "high"},
        }

    @staticmethod
    def _marked(message: dict[str, Any], cached: dict[str, Any]) -> dict[str, Any]:
        """The last block carries the mark of what to cache; a text becomes a block for it."""
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        return {**message, "content": [*content[:-1], {**content[-1], **cached}]}

    def take(self, answer: dict[str, Any], turn: int) -> None:
        said = []
        for block in answer["content"]:
            if block["type"] == "thinking":
                if self.keeps == "nothing":
                    continue
                block = {**block, "signature": block["signature"] if self.keeps == "seal" else ""}
            if block["type"] == "tool_use":  # written anew
                block = {**block, "input": json.loads(json.dumps(block["input"]))}
            said.append(block)
        calls = [block["id"] for block in said if block["type"] == "tool_use"]
        if said:
            self.messages.append({"role": "assistant", "content": said})
        results = [
            {"tool_use_id": call, "type": "tool_result", "content": f"{turn}\n", "is_error": False}
            for call in calls
        ]
        self.messages.append({"role": "user", "content": results or f"Go on, {turn}."})


class Codex:
    """What Codex sends: `input` of one thread, and the next after an answer."""

    path, tool = "/v1/responses", "exec_command"

    def __init__(self, thinks: bool, keeps: Keeps) -> None:
        self.thinks, self.keeps = thinks, keeps
        self.items: list[Any] = [
            self._said("developer", PROMPT),
            self._said("developer", "<permissions instructions>All.</permissions instructions>"),
            self._said("user", "<environment_context>\n  <cwd>/w</cwd>\n</environment_context>"),
            self._said("user", "Begin."),
        ]

    @staticmethod
    def _said(role: str, text: str) -> dict[str, Any]:
        content = [{"type": "input_text", "text": text}]
        return {"type": "message", "id": f"msg_{role}", "role": role, "content": content}

    def body(self, turn: int) -> dict[str, Any]:
        clock = {"type": "function", "name": "clock", "strict": False, "parameters": SCHEMA}
        return {
            "model": "nano",
            "input": self.items,
            "tools": [
                {
                    "type": "function",
                    "name": "exec_command",
                    "description": "Run.",
                    "strict": False,
                    "parameters": SCHEMA,
                },
                {"type": "namespace", "name": "mcp__t", "description": "d", "tools": [clock]},
                {"type": "web_search", "external_web_access": False},
            ],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "reasoning": {"summary": "auto"} if self.thinks else {"effort": "none"},
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "thread",
            "client_metadata": {"turn_id": f"{turn}"},
            "max_output_tokens": 400,
        }

    def take(self, answer: dict[str, Any], turn: int) -> None:
        for item in answer["output"]:
            if item["type"] == "reasoning":
                if self.keeps == "nothing":
                    continue
                seal = item["encrypted_content"] if self.keeps == "seal" else None
                item = {**item, "content": None, "encrypted_content": seal}
            self.items.append(item)
        calls = [item for item in answer["output"] if item["type"] == "function_call"]
        for call in calls:
            output = f"Wall time: 0.0000 seconds\nOutput:\n{turn}\n"
            done = {"type": "function_call_output", "id": f"fco_{turn}", "output": output}
            self.items.append({**done, "call_id": call["call_id"]})
        if not calls:
            self.items.append(self._said("user", f"Go on, {turn}."))


@pytest.fixture(scope="module")
def network() -> Any:
    vocabulary = small_tokenizer().num_tokens
    config = replace(
        tiny(),
        quantization_config=None,
        expert_dtype=None,
        num_hidden_layers=2,
        compress_ratios=(128, 4, 0),
        vocab_size=vocabulary,
    )
    return as_network(make_network(config, dtype=torch.bfloat16))


@pytest.fixture(params=[Claude, Codex])
def agent(request: pytest.FixtureRequest) -> type[Claude] | type[Codex]:
    kind: type[Claude] | type[Codex] = request.param
    return kind


@pytest.mark.parametrize("keeps", get_args(Keeps))
def test_nearly_all_of_the_last_turn_is_a_hit(
    network: Any, agent: type[Claude] | type[Codex], keeps: Keeps
) -> None:
    _run_session(network, agent(True, keeps))


def test_nearly_all_of_the_last_turn_is_a_hit_without_thinking(
    network: Any, agent: type[Claude] | type[Codex]
) -> None:
    _run_session(network, agent(False, "seal"))


def _run_session(network: Any, session: Claude | Codex) -> None:
    tokenizer = small_tokenizer()
    # Only counts are compared, so that states may be kept anywhere, whatever the network.
    settings = EngineSettings(exact_splits=True, context_tokens=8192, draft_tokens=0)
    engine = Dictated(
        Engine(network, tokenizer, settings), tokenizer, turn_text(session.tool, session.thinks)
    )
    names = ServerOptions(model_names=("nano",))
    with live(engine, names, tokenizer=tokenizer) as running:
        for turn in range(TURNS):
            answer, hits = _ask(running, engine, session.path, session.body(turn))
            if turn:
                held = len(engine.requests[-2].prompt) + len(engine.written[-2])
                assert hits >= 0.99 * held, (turn, hits, held, len(engine.requests[-1].prompt))
            session.take(answer, turn)


def _ask(running: Live, engine: EngineLike, path: str, body: Any) -> tuple[Any, int]:
    """An answer, and how many of its prompt's tokens the engine found in its cache."""
    before = engine.stats().hit_tokens
    answer = post(running.url + path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json(), engine.stats().hit_tokens - before
