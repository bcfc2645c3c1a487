"""The prompt library stands alone: no torch, no server, no command line, no package but ours."""

import subprocess
import sys

SHOW = "import sys; {}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"


def loaded(statement: str) -> set[str]:
    command = [sys.executable, "-c", SHOW.format(statement)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_the_prompt_needs_only_the_standard_library() -> None:
    foreign = loaded("import sounding.text") - loaded("pass") - set(sys.stdlib_module_names)
    assert foreign == {"sounding"}


def test_tokens_and_grammar_need_no_torch() -> None:
    statement = "import sounding.text.tokenizer, sounding.completion.healing, sounding.text.grammar"
    assert not loaded(statement) & {"torch", "numpy", "click", "transformers", "starlette"}
