"""Firefox without a driver: it speaks WebDriver BiDi itself, JSON over a web socket, and this is the little we ask."""

import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading

import websocket

NAMES = ("firefox-esr", "firefox")


def find() -> str | None:
    """Path of $POSTX_FIREFOX or of the first Firefox that is installed, or None."""
    return os.environ.get("POSTX_FIREFOX") or next(filter(None, map(shutil.which, NAMES)), None)


LOADED = """() => document.readyState === 'complete' ||
    new Promise((done) => addEventListener('load', () => done(true)))"""


class Firefox:
    """A browser without a window, and one page in it. Use it in a `with`."""

    def __init__(self, path: str, wait: float = 120):
        self.path, self.wait = path, wait
        self.numbers, self.errors = itertools.count(1), []

    def __enter__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        words = ["--headless", "--no-remote", "--profile", self.profile.name, "--remote-debugging-port", "0"]
        self.process = subprocess.Popen([self.path, *words], stderr=subprocess.PIPE, text=True)
        lines = (re.search(r"BiDi listening on (ws://\S+)", line) for line in self.process.stderr)
        said = next(filter(None, lines), None)
        if said is None:
            raise RuntimeError(f"{self.path} ended without saying where it listens")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()  # a full pipe would stop it
        self.socket = websocket.create_connection(f"{said[1]}/session", timeout=self.wait, suppress_origin=True)
        self.call("session.new", capabilities={})
        self.call("session.subscribe", events=["log.entryAdded", "network.fetchError", "network.responseCompleted"])
        self.page = self.call("browsingContext.create", type="tab")["context"]
        return self

    def __exit__(self, *error):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)
        self.profile.cleanup()

    def call(self, method: str, **params) -> dict:
        """Send a command and return its result; what the page reports meanwhile goes to `errors`."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (told := json.loads(self.socket.recv())).get("id") != number:
            self.note(told.get("method"), told.get("params", {}))
        if told["type"] == "error":
            raise RuntimeError(f"{method}: {told['error']}: {told['message']}")
        return told["result"]

    def note(self, event: str, params: dict) -> None:
        given_up = "status=2152398850"  # NS_BINDING_ABORTED, of a font
        if event == "log.entryAdded" and params["level"] == "error" and given_up not in params["text"]:
            self.errors.append(f"console: {params['text']}")
        elif event == "network.responseCompleted" and params["response"]["status"] >= 400:
            self.errors.append(f"status {params['response']['status']}: {params['request']['url']}")
        elif event == "network.fetchError" and params["errorText"] != "NS_BINDING_ABORTED":  # given up by the page
            self.errors.append(f"failed: {params['request']['url']} {params['errorText']}")

    def open(self, address: str, width: int, height: int) -> None:
        """Load a page in a window of this size."""
        self.call("browsingContext.setViewport", context=self.page, viewport={"width": width, "height": height})
        self.call("browsingContext.navigate", context=self.page, url=address, wait="complete")
        self.evaluate(LOADED)  # Firefox may answer before

    def evaluate(self, function: str, argument=None):
        """What a JavaScript function returns for an argument; both go as JSON. A promise is waited for."""
        code = f"(async () => JSON.stringify((await ({function})({json.dumps(argument)})) ?? null))()"
        got = self.call("script.evaluate", expression=code, target={"context": self.page}, awaitPromise=True)
        if got["type"] == "exception":
            raise RuntimeError(got["exceptionDetails"]["text"])
        return json.loads(got["result"]["value"])

    def press(self, key: str) -> None:
        """A key of the keyboard, for what has the focus."""
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        keyboard = {"type": "key", "id": "keyboard", "actions": actions}
        self.call("input.performActions", context=self.page, actions=[keyboard])
