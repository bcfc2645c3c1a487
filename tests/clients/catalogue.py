"""The clients that `scripts/try-clients` installs, and how each is asked for each scenario."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tests.clients.scripted_model import STORY_WORDS, TALK_WORDS, TOOL_WORDS

Scenario = Literal["conversation", "tool", "cancel", "reconnect"]
PROGRAMS = Path(__file__).parent / "programs"
WORDS: dict[Scenario, str] = {
    "conversation": TALK_WORDS,
    "tool": TOOL_WORDS,
    "cancel": STORY_WORDS,
    "reconnect": STORY_WORDS,
}
_NO_TOOLS = "has no tools"


@dataclass(frozen=True)
class Place:
    """Where a client is installed, and where one scenario of it runs."""

    folder: Path
    url: str = ""
    home: Path = Path()
    work: Path = Path()

    def at(self, url: str, scenario: Scenario) -> "Place":
        """The same with a home and a folder to work in that are empty."""
        home, work = self.folder / f"{scenario}-home", self.folder / f"{scenario}-work"
        for path in (home, work):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        return replace(self, url=url, home=home, work=work)

    def tool(self, name: str) -> str:
        """A command that was installed."""
        places = (self.folder / "venv/bin" / name, self.folder / "node_modules/.bin" / name)
        return str(next((path for path in places if path.exists()), places[0]))


@dataclass(frozen=True, kw_only=True)
class Client:
    """A program or library, and the command line of each scenario."""

    name: str
    registry: Literal["npm", "pip"]
    packages: tuple[str, ...]
    """What to install; the version that is shown is the first one's."""
    route: str
    command: Callable[[Place, Scenario, int], list[str]]
    """The command of a scenario; the last argument counts a conversation's turns."""
    environment: Callable[[Place], Mapping[str, str]] = lambda place: {}
    prepare: Callable[[Place], None] = lambda place: None
    turns: int = 1
    """How many commands a conversation takes; a library holds it in one."""
    without: Mapping[Scenario, str] = field(default_factory=dict)
    """Scenarios that it has not, and why."""
    cancels_itself: bool = False
    """Whether the program leaves its answer by itself, or is interrupted."""


def _library(
    name: str,
    registry: Literal["npm", "pip"],
    packages: str,
    route: str,
    program: str,
    *,
    without: Mapping[Scenario, str] | None = None,
) -> Client:
    """A library, tried by a program of ours that takes address, scenario and words."""

    def prepare(place: Place) -> None:
        shutil.copy(PROGRAMS / program, place.folder)  # modules are looked for beside a program

    def command(place: Place, scenario: Scenario, turn: int) -> list[str]:
        runner = place.tool("python") if registry == "pip" else "node"
        return [runner, str(place.folder / program), place.url, scenario, WORDS[scenario]]

    return Client(
        name=name,
        registry=registry,
        packages=tuple(packages.split()),
        route=route,
        command=command,
        prepare=prepare,
        without=without or {},
        cancels_itself=True,
    )


# -- programs --------------------------------------------------------------------------------------


def _codex_settings(place: Place) -> None:
    folder = place.home / ".codex"
    folder.mkdir()
    (folder / "config.toml").write_text(
        'model = "nano"\n'
        'model_provider = "sounding"\n'
        "[model_providers.sounding]\n"
        'name = "Sounding"\n'
        f'base_url = "{place.url}/v1"\n'
        'wire_api = "responses"\n'
    )


def _codex(place: Place, scenario: Scenario, turn: int) -> list[str]:
    how = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    again = ["resume", "--last"] if turn else []
    return [place.tool("codex"), "exec", *how, *again, WORDS[scenario]]


def _claude(place: Place, scenario: Scenario, turn: int) -> list[str]:
    again = ["--continue"] if turn else []
    return [place.tool("claude"), *again, "--allowedTools", "Bash", "-p", WORDS[scenario]]


def _claude_environment(place: Place) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": place.url,
        "ANTHROPIC_API_KEY": "any",
        "ANTHROPIC_MODEL": "nano",
    }


def _opencode_settings(place: Place) -> None:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Sounding",
        "options": {"baseURL": f"{place.url}/v1", "apiKey": "any"},
        "models": {"nano": {"name": "nano"}},
    }
    text = json.dumps({"provider": {"sounding": provider}}, indent=2)
    (place.work / "opencode.json").write_text(text)


def _opencode(place: Place, scenario: Scenario, turn: int) -> list[str]:
    again = ["--continue"] if turn else []
    return [place.tool("opencode"), "run", "-m", "sounding/nano", *again, WORDS[scenario]]


def _qwen(place: Place, scenario: Scenario, turn: int) -> list[str]:
    again = ["--continue"] if turn else []
    how = ["--auth-type", "openai", "--yolo"]
    return [place.tool("qwen"), *how, *again, "-p", WORDS[scenario]]


def _openai_environment(place: Place) -> dict[str, str]:
    address = f"{place.url}/v1"
    return {
        "OPENAI_API_KEY": "any",
        "OPENAI_BASE_URL": address,
        "OPENAI_API_BASE": address,
        "OPENAI_MODEL": "nano",
    }


def _continue_settings(place: Place) -> None:
    (place.work / "config.yaml").write_text(
        "name: local\nversion: 0.0.1\nschema: v1\nmodels:\n"
        "  - name: nano\n    provider: openai\n    model: nano\n    apiKey: any\n"
        f"    apiBase: {place.url}/v1\n    roles: [chat]\n    capabilities: [tool_use]\n"
    )


def _continue(place: Place, scenario: Scenario, turn: int) -> list[str]:
    again = ["--resume"] if turn else []
    how = ["--config", "config.yaml", "--auto"]
    return [place.tool("cn"), *how, *again, "-p", WORDS[scenario]]


def _aider(place: Place, scenario: Scenario, turn: int) -> list[str]:
    quiet = "--no-git --yes-always --no-check-update --no-show-model-warnings --no-analytics"
    again = ["--restore-chat-history"] if turn else []
    how = ["--model", "openai/nano", *quiet.split(), *again]
    return [place.tool("aider"), *how, "--message", WORDS[scenario]]


def _llm_settings(place: Place) -> None:
    folder = place.home / ".config/io.datasette.llm"
    folder.mkdir(parents=True)
    (folder / "extra-openai-models.yaml").write_text(
        f"- model_id: nano\n  model_name: nano\n  api_base: {place.url}/v1\n"
        "  supports_tools: true\n"
    )


def _llm(place: Place, scenario: Scenario, turn: int) -> list[str]:
    again = ["--continue"] if turn else ["-m", "nano"]
    tool = "def sounding_line() -> str:\n    return '4711 fathoms'"
    tools = ["--functions", tool] if scenario == "tool" else []
    return [place.tool("llm"), "prompt", "--key", "any", *again, *tools, WORDS[scenario]]


def _mini(place: Place, scenario: Scenario, turn: int) -> list[str]:
    how = ["-m", "openai/nano", "--yolo", "--exit-immediately", "--cost-limit", "0"]
    return [place.tool("mini"), *how, "-t", WORDS[scenario]]


def _mini_environment(place: Place) -> dict[str, str]:
    quiet = {"MSWEA_CONFIGURED": "true", "MSWEA_COST_TRACKING": "ignore_errors"}
    return _openai_environment(place) | quiet


_ALWAYS_ACTS = "every answer is a call"

CLIENTS = (
    Client(
        name="Codex",
        registry="npm",
        packages=("@openai/codex",),
        route="/v1/responses",
        command=_codex,
        prepare=_codex_settings,
        turns=2,
    ),
    Client(
        name="Claude Code",
        registry="npm",
        packages=("@anthropic-ai/claude-code",),
        route="/v1/messages",
        command=_claude,
        environment=_claude_environment,
        turns=2,
    ),
    Client(
        name="opencode",
        registry="npm",
        packages=("opencode-ai",),
        route="/v1/chat/completions",
        command=_opencode,
        prepare=_opencode_settings,
        turns=2,
    ),
    Client(
        name="Qwen Code",
        registry="npm",
        packages=("@qwen-code/qwen-code",),
        route="/v1/chat/completions",
        command=_qwen,
        environment=_openai_environment,
        turns=2,
    ),
    Client(
        name="Continue CLI",
        registry="npm",
        packages=("@continuedev/cli",),
        route="/v1/chat/completions",
        command=_continue,
        prepare=_continue_settings,
        turns=2,
    ),
    Client(
        name="aider",
        registry="pip",
        packages=("aider-chat",),
        route="/v1/chat/completions",
        command=_aider,
        environment=_openai_environment,
        turns=2,
        without={"tool": _NO_TOOLS},
    ),
    Client(
        name="mini-swe-agent",
        registry="pip",
        packages=("mini-swe-agent",),
        route="/v1/chat/completions",
        command=_mini,
        environment=_mini_environment,
        without={"conversation": _ALWAYS_ACTS},
    ),
    Client(
        name="llm",
        registry="pip",
        packages=("llm",),
        route="/v1/chat/completions",
        command=_llm,
        prepare=_llm_settings,
        turns=2,
    ),
    _library("openai, Python", "pip", "openai", "/v1/chat/completions", "openai_chat.py"),
    _library("openai, Python", "pip", "openai", "/v1/responses", "openai_responses.py"),
    _library("openai, JavaScript", "npm", "openai", "/v1/chat/completions", "openai_chat.mjs"),
    _library("anthropic, Python", "pip", "anthropic", "/v1/messages", "anthropic_messages.py"),
    _library(
        "Anthropic SDK, JavaScript",
        "npm",
        "@anthropic-ai/sdk",
        "/v1/messages",
        "anthropic_messages.mjs",
    ),
    _library("AI SDK", "npm", "ai @ai-sdk/openai-compatible", "/v1/chat/completions", "ai_sdk.mjs"),
    _library("ollama, Python", "pip", "ollama", "/api/chat", "ollama_chat.py"),
    _library("ollama, JavaScript", "npm", "ollama", "/api/chat", "ollama_chat.mjs"),
    _library("litellm", "pip", "litellm", "/v1/chat/completions", "litellm_chat.py"),
    _library(
        "LangChain (langchain-openai)",
        "pip",
        "langchain-openai",
        "/v1/chat/completions",
        "langchain_chat.py",
    ),
    _library(
        "Pydantic AI",
        "pip",
        "pydantic-ai-slim[openai]",
        "/v1/chat/completions",
        "pydantic_ai_chat.py",
    ),
)
