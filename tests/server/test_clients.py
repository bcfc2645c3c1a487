"""Requests as editors and agents write them, field for field: each is answered, none by chance."""

from collections.abc import Iterator
from typing import Any

import pytest

from sounding.server.options import ServerOptions
from tests.server.live import Live, live, post
from tests.server.scripted import ScriptedEngine

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": "Read a file.",
        "parameters": {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {"path": {"type": "string"}},
            "required": ["path"],
            "additionalProperties": False,
        },
    },
}
CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "read_file", "arguments": '{"path":"a.py"}'},
}
CACHED = {"cache_control": {"type": "ephemeral"}}

CLIENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai sdk, messages passed back as they came": (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {
                    "role": "assistant",
                    "content": "Hello.",
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "tool_calls": None,
                    "reasoning_content": "Hm.",
                },
                {"role": "user", "content": "And?"},
            ],
        },
    ),
    "cline": (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "You are Cline."},
                {"role": "user", "content": [{"type": "text", "text": "Fix it."}]},
            ],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "tools": [TOOL | {"function": TOOL["function"] | {"strict": False}}],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
        },
    ),
    "continue, an agent's second turn": (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": "Read it."},
                {"role": "assistant", "content": " ", "tool_calls": [CALL]},
                {"role": "tool", "content": "x = 1", "tool_call_id": "call_1"},
            ],
            "max_tokens": 4096,
            "stream": True,
            "tools": [TOOL],
        },
    ),
    "zed": (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "You are in Zed."}]},
                {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "stop": [],
            "temperature": 1.0,
            "max_completion_tokens": 8192,
            "parallel_tool_calls": False,
            "tools": [TOOL],
            "tool_choice": "auto",
            "prompt_cache_key": "thread-1",
        },
    ),
    "aider": (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "Act as an expert."},
                {"role": "user", "content": "Change it."},
                {"role": "assistant", "content": "Ok.", "prefix": True},
            ],
            "temperature": 0,
            "stream": True,
        },
    ),
    "opencode, to deepseek's address": (
        "/chat/completions",
        {
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 32000,
            "temperature": 1,
            "top_p": 1,
            "thinking": {"type": "enabled"},
            "reasoning_effort": "max",
            "tools": [TOOL],
            "tool_choice": "auto",
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    "llama.vim, an instruction": (
        "/v1/chat/completions",
        {
            "id_slot": 0,
            "messages": [{"role": "user", "content": "Rewrite."}],
            "min_p": 0.1,
            "temperature": 0.1,
            "samplers": ["min_p", "temperature"],
            "stream": True,
            "cache_prompt": True,
        },
    ),
    "minuet, to deepseek's address": (
        "/beta/completions",
        {
            "prompt": "def f(x):\n    ",
            "suffix": "\n",
            "max_tokens": 256,
            "stop": ["\n\n"],
            "top_p": 0.9,
            "stream": True,
        },
    ),
    "claude code": (
        "/v1/messages?beta=true",
        {
            "max_tokens": 32000,
            "system": [
                {"type": "text", "text": "You are an agent.", **CACHED},
                {"type": "text", "text": "Be brief.", **CACHED},
            ],
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "Read it.", **CACHED}],
                },
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm.", "signature": "sounding1."},
                        {"type": "text", "text": "I read."},
                        {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"p": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "toolu_1",
                            "content": [{"type": "text", "text": "x = 1"}],
                            "is_error": False,
                            **CACHED,
                        },
                        {"type": "text", "text": "<system-reminder>now</system-reminder>"},
                    ],
                },
            ],
            "tools": [
                {
                    "name": "Read",
                    "description": "Read a file.",
                    "input_schema": {"type": "object", "properties": {"p": {"type": "number"}}},
                }
            ],
            "metadata": {"user_id": "user_1"},
            "thinking": {"type": "adaptive"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "output_config": {"effort": "medium"},
            "temperature": 1,
            "stream": True,
        },
    ),
    "codex": (
        "/v1/responses",
        {
            "instructions": "You are a coding agent.",
            "input": [
                {
                    "type": "message",
                    "role": "developer",
                    "content": [{"type": "input_text", "text": "Rules."}],
                },
                {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "Read it."}],
                },
                {
                    "type": "reasoning",
                    "id": "rs_1",
                    "summary": [],
                    "content": None,
                    "encrypted_content": "gAAAA-of-another-server",
                },
                {
                    "type": "function_call",
                    "name": "shell",
                    "arguments": "{}",
                    "call_id": "call_1",
                },
                {"type": "function_call_output", "call_id": "call_1", "output": "x"},
            ],
            "tools": [
                {
                    "type": "function",
                    "name": "shell",
                    "description": "Run.",
                    "strict": False,
                    "parameters": {"type": "object", "properties": {}},
                }
            ],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "reasoning": {"effort": "medium", "summary": "auto"},
            "store": False,
            "stream": True,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "thread-1",
            "text": {"verbosity": "medium"},
        },
    ),
    "llama.vim, ghost text": (
        "/infill",
        {
            "id_slot": 0,
            "input_prefix": "def f(x):\n",
            "input_suffix": "\n",
            "input_extra": [{"text": "y = 2\n", "time": 17.5, "filename": "b.py"}],
            "prompt": "    return ",
            "n_predict": 128,
            "stop": [],
            "n_indent": 4,
            "top_k": 40,
            "top_p": 0.90,
            "samplers": ["top_k", "top_p", "infill"],
            "t_max_prompt_ms": 500,
            "t_max_predict_ms": 1000,
            "stream": False,
            "cache_prompt": True,
            "model": "",
            "response_fields": ["content", "timings/prompt_n", "timings/predicted_n", "truncated"],
        },
    ),
    "llama-vscode, ghost text": (
        "/infill",
        {
            "id_slot": 0,
            "input_prefix": "def f(x):\n",
            "input_suffix": "\n",
            "input_extra": [],
            "prompt": "    return ",
            "n_predict": 128,
            "n_cmpl": 3,
            "top_k": 40,
            "top_p": 0.99,
            "stream": False,
            "n_indent": 4,
            "samplers": ["top_k", "top_p", "infill"],
            "cache_prompt": True,
            "t_max_prompt_ms": 500,
            "t_max_predict_ms": 2500,
        },
    ),
    "zed, a prediction": (
        "/v1/completions",
        {
            "prompt": "<｜fim▁begin｜>def f(x):\n    return <｜fim▁hole｜>\n<｜fim▁end｜>",
            "max_tokens": 64,
            "stop": ["<|fim_prefix|>", "<|fim_suffix|>", "<|endoftext|>"],
        },
    ),
    "continue, a gap in its own markers": (
        "/v1/completions",
        {
            "prompt": "<｜fim▁begin｜>def f(x):\n    return <｜fim▁hole｜>\n<｜fim▁end｜>",
            "max_tokens": 2048,
            "temperature": 0.01,
            "stream": True,
            "stop": ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "//", "/src/"],
        },
    ),
    "mini-swe-agent 2.4.6": (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "You can run commands."},
                {"role": "user", "content": "List the files."},
                {
                    "role": "assistant",
                    "content": "I look.",
                    "tool_calls": [CALL | {"index": 0}],
                    "function_call": None,
                    "provider_specific_fields": None,
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "<returncode>0</returncode>"},
            ],
            "tools": [TOOL],
        },
    ),
    "llm 0.36": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    "openai sdk 6.49.0 (js), runTools' second turn": (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": "Read it."},
                {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
                {"role": "tool", "tool_call_id": "call_1", "content": "x = 1"},
            ],
            "tools": [TOOL],
            "tool_choice": "auto",
        },
    ),
    "ollama 0.6.4, a chat": (
        "/api/chat",
        {
            "messages": [
                {"role": "user", "content": "Read it."},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"function": {"name": "read_file", "arguments": {"path": "a"}}}],
                },
                {"role": "tool", "tool_name": "read_file", "content": "x = 1"},
            ],
            "tools": [TOOL],
            "think": False,
            "stream": False,
        },
    ),
    "continue, completing through ollama": (
        "/api/generate",
        {
            "prompt": "def f(x):\n    ",
            "suffix": "\n",
            "raw": True,
            "keep_alive": 1800,
            "options": {
                "temperature": 0.01,
                "num_predict": 128,
                "stop": ["/src/", "#- coding"],
                "num_ctx": 4096,
            },
        },
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(ScriptedEngine("Hm.</think>Yes."), ServerOptions(model_names=("*",))) as running:
        yield running


@pytest.mark.parametrize("name", CLIENTS)
def test_the_request_of_every_client_is_answered(server: Live, name: str) -> None:
    path, body = CLIENTS[name]
    answer = post(server.url + path, json={"model": "any"} | body)
    assert answer.status_code == 200, answer.text
    assert "Yes" in answer.text


def test_aider_goes_on_with_its_prefix(server: Live) -> None:
    path, body = CLIENTS["aider"]
    post(server.url + path, json={"model": "any"} | body)
    assert isinstance(server.engine, ScriptedEngine)
    assert server.engine.prompts[-1].endswith("</think>Ok.")


def test_claude_code_s_turn_in_the_prompt(server: Live) -> None:
    path, body = CLIENTS["claude code"]
    post(server.url + path, json={"model": "any"} | body)
    assert isinstance(server.engine, ScriptedEngine)
    prompt = server.engine.prompts[-1]
    assert "You are an agent.\n\nBe brief." in prompt
    assert "<think>Hm.</think>I read.\n\n<｜DSML｜tool_calls>" in prompt
    assert prompt.endswith(
        "<tool_result>x = 1</tool_result>\n\n<system-reminder>now</system-reminder>"
        "<｜Assistant｜><think>"
    )
