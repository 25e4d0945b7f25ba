"""A llama-server with monitoring attached, for tests and the demonstration."""

import http.client
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """Starts `command` (up to and with --) and llama-server behind it; ends both on leaving."""

    def __init__(self, command, server, llm, log, arguments=()):
        self.port = free_port()
        self.log_path = log
        self.code = None
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [*command, server, "-m", llm, "--host", "127.0.0.1", "--port", str(self.port), *arguments],
                stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def __enter__(self):
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log()}")
            try:
                if self.get("/health").get("status") == "ok":
                    return self
            except OSError:
                pass
            time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"the server is not ready after three minutes:\n{self.log()}")

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """SIGTERM; the exit status, and the seconds it took."""
        begin = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.code = self.process.returncode
        return self.code, time.monotonic() - begin

    def log(self):
        with open(self.log_path, errors="replace") as file:
            return file.read()

    def said(self, start):
        """The last line that monitoring left in the log, beginning so."""
        lines = [line for line in self.log().splitlines() if line.startswith("kronsae: " + start)]
        return lines[-1] if lines else ""

    def get(self, path, base=None):
        with urllib.request.urlopen((base or f"http://127.0.0.1:{self.port}") + path, timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, path, body, timeout=300):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.loads(answer.read())

    def tokens(self, text):
        return self.post("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]

    def complete(self, prompt, slot, count, **more):
        """Token ids of prompt and answer."""
        body = {"prompt": prompt, "n_predict": count, "id_slot": slot, "temperature": 0, "cache_prompt": True,
                "return_tokens": True, "ignore_eos": True, **more}
        answer = self.post("/completion", body)
        return self.tokens(prompt), answer["tokens"], answer


def accounts(line):
    """The numbers of the line that monitoring ends with."""
    numbers = {}
    for name in ("submitted", "encoded", "sampled out", "dropped", "not finite"):
        rest = line.split(name + " ", 1)[1]
        numbers[name] = int(rest.split(" ")[0].rstrip(";"))
    for name in ("unmapped", "refused"):
        numbers[name] = int(line.split(" " + name)[0].split(" ")[-1])
    return numbers


def program_output(command, **more):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
                          env={**os.environ, **more}, check=False)
