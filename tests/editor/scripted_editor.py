"""An editor as far as the protocol goes, written without the library that the server uses."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

SECONDS = 60.0  # before a message that does not come is an error


class Editor:
    """Runs a language server and talks with it over its stdin and stdout."""

    def __init__(self, command: Sequence[str], capabilities: dict[str, Any] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.messages: list[dict[str, Any]] = []  # notifications
        self.log: list[str] = []  # lines of stderr
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._arrived = threading.Condition()
        self._count = 0
        self._open: set[str] = set()
        self._threads = [
            threading.Thread(target=self._read),
            threading.Thread(target=self._read_log),
        ]
        for thread in self._threads:
            thread.start()
        parameters = {"processId": None, "rootUri": "file:///w", "capabilities": capabilities or {}}
        self.server = self.ask("initialize", parameters)["result"]
        self.tell("initialized", {})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def begin(self, method: str, params: Any) -> int:
        """Send a request; its number."""
        self._count += 1
        self._answers[self._count] = queue.Queue()
        self._send({"id": self._count, "method": method, "params": params})
        return self._count

    def end(self, request: int) -> dict[str, Any]:
        """Wait for the answer to a request."""
        return self._answers[request].get(timeout=SECONDS)

    def ask(self, method: str, params: Any) -> dict[str, Any]:
        return self.end(self.begin(method, params))

    def tell(self, method: str, params: Any) -> None:
        self._send({"method": method, "params": params})

    def open(self, uri: str, text: str, language: str = "python") -> None:
        self._open.add(uri)
        item = {"uri": uri, "languageId": language, "version": 1, "text": text}
        self.tell("textDocument/didOpen", {"textDocument": item})

    def close(self, uri: str) -> None:
        self._open.discard(uri)
        self.tell("textDocument/didClose", {"textDocument": {"uri": uri}})

    def close_all(self) -> None:
        for uri in list(self._open):
            self.close(uri)

    def change(self, uri: str, *changes: dict[str, Any]) -> None:
        document = {"uri": uri, "version": 2}
        parameters = {"textDocument": document, "contentChanges": changes}
        self.tell("textDocument/didChange", parameters)

    def begin_inline(self, uri: str, line: int, character: int, **context: Any) -> int:
        return self.begin("textDocument/inlineCompletion", _at(uri, line, character, **context))

    def inline(self, uri: str, line: int, character: int, **context: Any) -> Any:
        """The items of an inline completion, or None."""
        answer = self.end(self.begin_inline(uri, line, character, **context))
        return answer["result"]

    def menu(self, uri: str, line: int, character: int) -> Any:
        """The items of an ordinary completion."""
        result = self.ask("textDocument/completion", _at(uri, line, character))["result"]
        assert result["isIncomplete"] is True
        return result["items"]

    def leave(self) -> int:
        """Say goodbye as an editor does; the exit code."""
        self.ask("shutdown", None)
        self.tell("exit", None)
        return self.process.wait(SECONDS)

    def wait_until_asked(self, text: str) -> None:
        """Wait until the scripted model was asked to go on from a text that ends so."""
        written = json.dumps(text, ensure_ascii=False)[1:] + "\n"
        self.wait_for_log(lambda log: any(line.endswith(written) for line in log), text)

    def wait_for_log(self, done: Callable[[list[str]], bool], what: str) -> None:
        self._wait(lambda: done(self.log), what)

    def wait_for_message(self, text: str) -> None:
        self._wait(lambda: any(text in json.dumps(m) for m in self.messages), text)

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        with self._arrived:
            assert self._arrived.wait_for(done, SECONDS), f"{what!r} is not in {self.log}"

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.process.stdin.flush()

    def _read(self) -> None:
        output = self.process.stdout
        assert output is not None
        while header := output.readline():
            assert header.startswith(b"Content-"), header  # nothing else may ever be there
            length = int(header.split()[1])
            while output.readline().strip():
                pass
            message = json.loads(output.read(length))
            if "method" in message:
                with self._arrived:
                    self.messages.append(message)
                    self._arrived.notify_all()
            else:
                self._answers[message["id"]].put(message)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._arrived:
                self.log.append(line.decode())
                self._arrived.notify_all()


def _at(uri: str, line: int, character: int, **context: Any) -> dict[str, Any]:
    return {
        "textDocument": {"uri": uri},
        "position": {"line": line, "character": character},
        "context": {"triggerKind": 2, **context},
    }


SCRIPTED = ["-m", "tests.editor.scripted_language_server"]
