"""Answers that would rather deceive the grader than be right are not graded as passed."""

import random
import textwrap
from collections.abc import Iterator, Sequence

import pytest

from sounding.sandbox.run import Limits, NoIsolation, require_isolation
from sounding.sandbox.trial import Trial, Verdict, judge
from sounding.tasks.code import Problem, grade

# Bodies of add(a, b), none of which computes 3 from 1 and 2.
CHEATS = {
    "equal to everything": "return __import__('unittest.mock').mock.ANY",
    "an int that is equal": """
        class Int(int):
            __eq__ = lambda self, other: True
            __ne__ = lambda self, other: False
            __hash__ = int.__hash__
        return Int(7)
    """,
    "a float that is near": """
        class Float(float):
            __eq__ = __lt__ = __le__ = __gt__ = __ge__ = lambda self, other: True
            __sub__ = __rsub__ = __abs__ = lambda self, *other: 0.0
        return Float(7)
    """,
    "a text that is equal": """
        class Text(str):
            def __eq__(self, other): return True
            def __hash__(self): return hash(3)
        return Text("7")
    """,
    "an object of another class": """
        class Liar:
            __class__ = int
            def __eq__(self, other): return True
            def __sub__(self, other): return 0
            def __abs__(self): return 0
            def __bool__(self): return True
            def __iter__(self): return iter([3])
            def __index__(self): return 3
            def __hash__(self): return 3
        return Liar()
    """,
    "a metaclass that is equal": """
        class Meta(type):
            __eq__ = lambda self, other: True
            __hash__ = type.__hash__
        return Meta("C", (), {})
    """,
    "a decimal that is equal": """
        import decimal
        class Decimal(decimal.Decimal):
            __eq__ = lambda self, other: True
            __sub__ = lambda self, other: 0
            __hash__ = decimal.Decimal.__hash__
        Decimal.__module__, Decimal.__qualname__ = "decimal", "Decimal"
        return Decimal(7)
    """,
    "starting again without asserts": """
        import os, sys
        for file in ("program.py", "test.py", "-c"):
            try: sys.flags.optimize or os.execv(sys.executable, ["python", "-O", file])
            except OSError: pass
        return 7
    """,
    "becoming another program": """
        import os
        for name in ("/bin/true", "/usr/bin/true"):
            try: os.execv(name, ["true"])
            except OSError: pass
        return 7
    """,
    "the expected value from the file": """
        import glob, re
        for name in glob.glob("*") + glob.glob("/tmp/*"):
            found = re.search(r"== (\\d)", open(name).read())
            if found: return int(found[1])
        return 7
    """,
    "the expected value from frames": """
        import inspect, sys
        frame = sys._getframe()
        while frame:
            for constant in frame.f_code.co_consts:
                if constant == 3 and "check" in frame.f_code.co_name: return constant
            if "candidate" in frame.f_locals: return 3
            frame = frame.f_back
        for entry in inspect.stack():
            if "assert" in str(entry.code_context): return 3
        return 7
    """,
    "the tests from memory": """
        import gc
        for thing in gc.get_objects():
            if type(thing) is dict and "calls_check" in thing: return 3
            if type(thing) is str and "assert cand" + "idate" in thing: return 3
        return 7
    """,
    "the tests from the file system of processes": """
        import os
        for name in ("/proc/self/maps", f"/proc/{os.getppid()}/environ", "/proc/1/mem"):
            try: return open(name).read() and 3
            except OSError: pass
        return 7
    """,
    "the tests from files that were left open": """
        import os
        for number in [0, *range(4, 64)]:
            try:
                os.lseek(number, 0, 0)
                if b"assert" in os.read(number, 1 << 20): return 3
            except OSError: pass
        return 7
    """,
    "exit with success": "raise SystemExit(0)",
    "exit at once": "import os; os._exit(0)",
    "a verdict on every file": """
        import os
        for number in range(64):
            for text in (b'{"reason": "", "changed": false}\\n', b"passed\\n"):
                try: os.write(number, text)
                except OSError: pass
        return 7
    """,
    "a verdict and the end": """
        import os
        for number in range(64):
            try: os.write(number, b'\\n{"reason": "", "changed": false}\\n')
            except OSError: pass
        os._exit(0)
    """,
    "a verdict at the end": """
        import atexit, os, sys
        forge = lambda *_: [os.write(n, b'{"reason": "", "changed": false}\\n') for n in (1, 2, 3)]
        atexit.register(forge)
        sys.excepthook = forge
        return 7
    """,
    "a verdict from a thread": """
        import os, threading
        def wait():
            threading.main_thread().join()
            os.write(1, b'{"reason": "", "changed": false}\\n')
        threading.Thread(target=wait).start()
        return 7
    """,
    "a child that reports": """
        import os
        if os.fork() == 0:
            os.write(1, b'{"reason": "", "changed": false}\\n')
            os._exit(0)
        return 7
    """,
    "replies before the questions": """
        import os
        os.write(3, b'{"contents": [], "value": 7}\\n' * 9)
        return 7
    """,
    "replies of other forms": """
        import os
        for text in (b"[]", b"3", b"{}", b'{"value": ["list"]}', b'{"contents": [], "value": 3.0}',
                     b'{"contents": [], "value": ["float", "nan"]}', b"\\xff", b"[" * 5000):
            os.write(3, text + b"\\n")
        return 7
    """,
    "a function of the tests that was never given": """
        import os
        os.write(3, b'{"call_back": 0, "arguments": ["tuple", []]}\\n')
        return 7
    """,
    "handles of others": """
        import os
        os.write(3, b'{"contents": [], "value": ["handle", -1]}\\n')
        return 7
    """,
    "an object that was never sent": """
        import os
        os.write(3, b'{"contents": [], "value": ["seen", 0]}\\n')
        return 7
    """,
    "a builtin instead": """
        import os
        os.write(3, b'{"contents": [], "value": ["builtin", "eval"]}\\n')
        return eval
    """,
    "other builtins": """
        import builtins, math
        builtins.abs = builtins.round = builtins.sum = builtins.len = lambda *_: 0
        builtins.AssertionError = type("Passed", (BaseException,), {})
        builtins.all = builtins.any = builtins.isinstance = lambda *_: True
        math.isclose = lambda *_, **__: True
        return 7
    """,
    "another json": """
        import json, sys
        json.dumps = lambda *_, **__: '{"contents": [], "value": ["float", "nan"]}'
        for name, module in list(sys.modules.items()):
            if name.endswith("typed_json"): module.Packer.pack = lambda *_: ["builtin", "max"]
        return 7
    """,
    "a trace that jumps": """
        import sys
        def jump(frame, event, argument):
            if event == "line" and frame.f_code.co_name == "check": frame.f_lineno += 1
            return jump
        sys.settrace(jump)
        frame = sys._getframe()
        while frame: frame.f_trace, frame = jump, frame.f_back
        return 7
    """,
    "files that interpreters read": """
        for name in ("sitecustomize.py", "usercustomize.py", "conftest.py", "pytest.ini", "x.pth",
                     "json.py", "contextlib.py", "types.py"):
            for folder in ("", "/tmp/", "/usr/lib/python3/dist-packages/"):
                try: open(folder + name, "w").write("import os; os._exit(0)")
                except OSError: pass
        return 7
    """,
    "ending the others": """
        import os, signal
        for process in (os.getppid(), 1, -1, 0):
            try: os.kill(process, signal.SIGSTOP if process != 0 else 0)
            except OSError: pass
        return 7
    """,
    "raising what the tests catch": "raise AssertionError",
    "raising what nobody catches": "raise KeyboardInterrupt",
    "raising a stop": "raise StopIteration(3)",
    "nothing": "return None",
    "a generator": "yield 3",
    "a coroutine": "return (lambda: (yield))()",
    "the function itself": "return add",
    "not a number": "return float('nan')",
}
WRONG = ("7", "None", "'3'", "[3]", "(3,)", "-3", "float('inf')", "True", "{3: 3}", "b'3'", "3j")

TESTS = (
    "assert candidate(1, 2) == 3",
    "assert 3 == candidate(1, 2)",
    "assert not candidate(1, 2) != 3",
    "assert abs(candidate(1, 2) - 3) < 1e-9",
    "assert candidate(1, 2) in (3,)",
    "assert {candidate(1, 2)} == {3}",
    "assert [candidate(1, 2)] == [3] and isinstance(candidate(1, 2), int)",
    "import math\n    assert math.isclose(candidate(1, 2), 3)",
    "assert all(candidate(n, n) == 2 * n for n in range(1, 5))",
    "assert candidate(1, 2) == 3\n    try:\n        candidate(None, 2)\n    except TypeError:\n"
    "        pass\n    else:\n        raise AssertionError",
)


def problem(test: str = TESTS[0]) -> Problem:
    return Problem(
        task_id="add",
        prompt="def add(a, b):\n",
        canonical_solution="    return a + b\n",
        test=f"def check(candidate):\n    {test}\n",
        entry_point="add",
    )


def body(text: str) -> str:
    return textwrap.indent(textwrap.dedent(text).strip("\n"), "    ") + "\n"


@pytest.fixture(scope="module", autouse=True)
def isolation() -> None:
    try:
        require_isolation()
    except NoIsolation as error:
        pytest.skip(str(error))


def judged(trial: Trial) -> Verdict:
    return judge(trial, Limits(wall_seconds=5.0, cpu_seconds=3))


def test_the_right_answer_passes_every_test() -> None:
    for test in TESTS:
        assert grade(problem(test), "    return a + b\n", judged).score == 1, test


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_not_passed(name: str) -> None:
    tests = TESTS if name.startswith(("a", "other")) else TESTS[:4]
    for test in tests[:2] + tests[3:4]:
        assert grade(problem(test), body(CHEATS[name]), judged).score == 0, test


@pytest.mark.long
@pytest.mark.parametrize("test", TESTS)
def test_no_cheat_passes_any_test(test: str) -> None:
    passed = [name for name, text in CHEATS.items() if grade(problem(test), body(text), judged)[0]]
    assert passed == []


def mutations(rng: random.Random) -> Iterator[str]:
    """Cheats put together anew: where they run, in which order, and what is returned then."""
    names = list(CHEATS)
    while True:
        lines: list[str] = []
        for name in rng.sample(names, rng.choice((1, 1, 2, 3))):
            text = textwrap.dedent(CHEATS[name]).strip("\n")
            lines.append(text.replace("return 7", f"result = {rng.choice(WRONG)}"))
        returned = f"return {rng.choice((*WRONG, 'result'))}"
        inner = "\n".join(lines)
        form = rng.randrange(5)
        if form == 0:
            inner = f"try:\n{textwrap.indent(inner, '    ')}\nexcept BaseException: pass"
        elif form == 1:
            inner = f"try: pass\nfinally:\n{textwrap.indent(inner, '    ')}"
        elif form == 2:
            inner = f"import threading\ndef work():\n{textwrap.indent(inner, '    ')}\n" + (
                "thread = threading.Thread(target=work); thread.start(); thread.join(1)"
            )
        elif form == 3:  # at the outermost level: when the program is loaded
            wrapped = textwrap.indent(inner, "    ")
            yield f"    {returned.replace('result', '7')}\ndef load():\n{wrapped}\nadd_ = load()\n"
            continue
        kept = inner.split("\n")
        if form == 4 and len(kept) > 2:
            kept.pop(rng.randrange(len(kept)))
        yield textwrap.indent("\n".join([*kept, returned]), "    ") + "\n"


def passed_mutations(count: int, seed: int, tests: Sequence[str]) -> list[str]:
    rng = random.Random(seed)
    return [
        text
        for _, text in zip(range(count), mutations(rng), strict=False)
        if grade(problem(rng.choice(tests)), text, judged).score
    ]


def test_mutations_of_cheats_are_not_passed() -> None:
    assert passed_mutations(12, 1, TESTS) == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 6))
def test_no_mutation_of_a_cheat_is_passed(seed: int) -> None:
    assert passed_mutations(100, seed, TESTS) == []


# --------------------------------------------------------------------------------------------------
# Arguments


def test_an_expected_value_made_from_the_argument_is_not_destroyed() -> None:
    sorts = Problem(
        task_id="sort",
        prompt="def order(items):\n",
        canonical_solution="    return sorted(items)\n",
        test="given = [3, 1]\nassert order(given) == sorted(given)",
        entry_point="order",
    )
    assert grade(sorts, "    return sorted(items)\n", judged).score == 1
    assert grade(sorts, "    items.sort()\n    return items\n", judged).score == 1
    emptied = grade(sorts, "    items.clear()\n    return []\n", judged)
    assert emptied == (0, "passes only by changing its arguments")


def test_helpers_of_the_problem_are_not_the_answers_to_redefine() -> None:
    root = Problem(
        task_id="root",
        prompt="def double(x):\n    return 2 * x\n\ndef half(y):\n",
        canonical_solution="    return y / 2\n",
        test="def check(candidate):\n    assert double(candidate(6)) == 6",
        entry_point="half",
    )
    assert grade(root, "    return y / 2\n", judged).score == 1
    assert grade(root, "    return 7\ndouble = lambda x: 6\n", judged).score == 0
    assert grade(root, "    global double\n    double = lambda x: 6\n", judged).score == 0


def test_other_functions_with_the_gap_in_them_are_the_answers() -> None:
    pair = Problem(
        task_id="pair",
        prompt="def one(x):\n    return ",
        canonical_solution="x + 1",
        suffix="\n\ndef two(x):\n    return one(one(x))\n",
        test="assert two(1) == 3\nassert one(1) == 2\n",
        entry_point="two",
    )
    assert grade(pair, "x + 1", judged).score == 1
    assert grade(pair, "3 if x == 2 else 2 if x == 1 else 0", judged).score == 1
    assert grade(pair, "3 if x == 9 else 9", judged).score == 0
