#!/usr/bin/env python3
"""The attachment in a real llama-server: whose tokens, which rows, which events; and what happens when things go wrong.

Environment: BUILD (what `make` built), LLAMA (a llama.cpp with build/bin), LLM (a GGUF), MODEL (features of one of its
layers), KRONSAE (the command). Arguments: as of unittest.
"""

import concurrent.futures
import glob
import json
import math
import os
import re
import socket
import subprocess
import tempfile
import unittest

import attached
import tensors

BUILD, LLAMA, LLM, MODEL, KRONSAE = (os.environ[name] for name in ("BUILD", "LLAMA", "LLM", "MODEL", "KRONSAE"))
HERE = os.path.dirname(os.path.abspath(__file__))
SERVER = os.path.join(LLAMA, "build/bin/llama-server")
ATTACH = os.path.join(BUILD, "kronsae-llama-attach")
# One thread: the barriers between two are slow where other programs want the CPUs too.
ARGUMENTS = ["-c", "4096", "-t", "1", "--temp", "0"]

FIRST = "The library opens at nine. Readers find maps on the first floor, and the"
SECOND = "def area(width, height):\n    return width * height\n\n\ndef volume("
REPETITIVE = "the cat sat on the mat. the cat sat on the hat. the cat sat on the rug. the cat ran to the mat. the cat"
TURN = " Where would I look for a map of the river? I would"


def layer_of(model):
    metadata, _ = tensors.read(model)
    return json.loads(metadata["config"])["source"]["layer"]


LAYER = layer_of(MODEL)


def recorded(folder):
    """The sequences of a recording: {(first tokens): ...} as a list of (token ids, positions, rows)."""
    sequences = []
    for shard in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        _, t = tensors.read(shard)
        (_, width), rows = t["activations"]
        found = {}
        for i, sequence in enumerate(t["sequence_ids"][1]):
            ids, positions, values = found.setdefault(sequence, ([], [], []))
            ids.append(t["token_ids"][1][i])
            positions.append(t["positions"][1][i])
            values.append(rows[i * width : (i + 1) * width])
        sequences.extend(found[key] for key in sorted(found))
    return sequences


def distance(a, b):
    """Of two rows, in units of the first one's norm."""
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b)) / sum(x * x for x in a))


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def attach(self, *options, model=True):
        listen = () if "--listen" in options else ("--listen", "none")
        return [ATTACH, *(("--model", MODEL) if model else ()), *listen, *options, "--"]

    def server(self, *options, arguments=()):
        return attached.Server(self.attach(*options), SERVER, LLM, self.path("server.log"), [*ARGUMENTS, *arguments])

    def recording(self, *options):
        return ["--record", self.path("recorded"), "--record-f32", "--record-token-ids", *options]

    def sequences(self, layer=LAYER):
        return recorded(self.path(f"recorded/layer-{layer}"))

    def assert_accounts(self, server, exact=True):
        line = server.said("ended: ")
        self.assertTrue(line, server.log()[:3000])
        numbers = attached.accounts(line)
        self.assertEqual(numbers["submitted"], sum(numbers[n] for n in ("encoded", "sampled out", "dropped", "not finite")))
        self.assertEqual((numbers["unmapped"], numbers["refused"]), (0, 0), line)
        if exact:
            self.assertEqual(numbers["dropped"], 0, line)
            self.assertEqual(numbers["encoded"], numbers["submitted"], line)
        return numbers


class Requests(Case):
    """Token ids and positions of what was recorded are those of the conversations, each in a sequence of its own."""

    def conversation(self, *arguments):
        with self.server(*self.recording(), arguments=["-np", "2", *arguments]) as server:
            with concurrent.futures.ThreadPoolExecutor() as pool:
                jobs = [pool.submit(server.complete, text, slot, 24) for slot, text in enumerate((FIRST, SECOND))]
                (first, answer, _), (second, other, _) = (job.result() for job in jobs)
            # The second turn of the first conversation: the slot has all of the first in its cache.
            said = server.post("/detokenize", {"tokens": answer})["content"]
            whole, last, result = server.complete(FIRST + said + TURN, 0, 8)
            self.assertLess(result["timings"]["prompt_n"], len(whole), "the turn was not served from the cache")
            computed_from = len(whole) - result["timings"]["prompt_n"]
            self.assertEqual(server.stop()[0], 0, server.log()[:3000])
            numbers = self.assert_accounts(server)
        # The last token of an answer is sampled, and never computed.
        expected = [
            (first + answer[:-1], 0),
            (second + other[:-1], 0),
            ((whole + last[:-1])[computed_from:], computed_from),
        ]
        found = self.sequences()
        self.assertEqual(len(found), 3)
        for tokens, start in expected:
            # Position 0 is not recorded.
            skip = 1 if start == 0 else 0
            matches = [s for s in found if s[0] == tokens[skip:]]
            self.assertEqual(len(matches), 1, f"no sequence of its own for {tokens}")
            self.assertEqual(matches[0][1], list(range(start + skip, start + len(tokens))))
        self.assertEqual(numbers["submitted"], sum(len(s[0]) for s in found))
        return found

    def test_concurrent_chats_and_turns(self):
        together = self.conversation()
        # Each row is its token's: a conversation alone gives the same activations.
        with self.server("--record", self.path("alone"), "--record-f32", "--record-token-ids", arguments=["-np", "1"]) as server:
            server.complete(SECOND, 0, 24)
        (ids, _, alone) = recorded(self.path(f"alone/layer-{LAYER}"))[0]
        same = [rows for other, _, rows in together if other == ids]
        self.assertEqual(len(same), 1)
        for a, b in zip(alone, same[0]):
            self.assertLess(distance(a, b), 0.02)
        self.assertGreater(distance(alone[0], alone[1]), 0.1, "rows that are all alike would show nothing")

    def test_streams_of_their_own_and_small_micro_batches(self):
        self.conversation("--no-kv-unified", "-b", "64", "-ub", "16")

    def test_a_long_prompt_is_one_request(self):
        text = " ".join(f"number {i}" for i in range(120))
        with self.server(*self.recording("--record-layer", "29"), arguments=["-np", "1", "-b", "128", "-ub", "64"]) as server:
            prompt, answer, _ = server.complete(text, 0, 4)
        self.assertGreater(len(prompt), 300)
        self.assertEqual([ids for ids, _, _ in self.sequences()], [(prompt + answer)[1:-1]])
        self.assertEqual([ids for ids, _, _ in self.sequences(29)], [(prompt[-1:] + answer)[:-1]])

    def test_a_shifted_context_and_several_answers(self):
        with self.server(*self.recording(), arguments=["-c", "128", "-np", "1", "--context-shift"]) as server:
            prompt, answer, _ = server.complete(FIRST, 0, 150)
        # The cache went back to the middle; the request's positions went on.
        ids, positions, _ = self.sequences()[0]
        self.assertEqual(ids, (prompt + answer)[1:-1])
        self.assertEqual(positions, list(range(1, len(prompt) + 149)))
        with self.server("--record", self.path("several"), "--record-f32", "--record-token-ids", arguments=["-np", "3"]) as server:
            messages = [{"role": "user", "content": "Say a word."}]
            answer = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 6, "n": 3, "temperature": 0.9})
            self.assertEqual(len(answer["choices"]), 3)
        # One computes the prompt; the others go on behind it.
        lengths = sorted(len(ids) for ids, _, _ in recorded(self.path(f"several/layer-{LAYER}")))
        self.assertEqual(len(lengths), 3)
        self.assertGreater(lengths[2], 20)
        self.assertLessEqual(lengths[1], 6)

    def test_many_requests_at_once(self):
        prompts = [f"{i}. {FIRST if i % 2 else SECOND} {i * 37}" for i in range(12)]
        with self.server(*self.recording(), arguments=["-np", "4", "--no-kv-unified", "-ub", "32"]) as server:
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                done = list(pool.map(lambda p: server.complete(p, -1, 6), prompts))
            server.stop()
            self.assert_accounts(server)
        # A slot's cache may hold the beginning of a prompt: what is recorded of it is its end.
        found = [ids for ids, _, _ in self.sequences()]
        self.assertEqual(len(found), len(prompts))
        for prompt, answer, _ in done:
            tokens = prompt + answer[:-1]
            matches = [ids for ids in found if tokens[-len(ids):] == ids]
            self.assertEqual(len(matches), 1)
            found.remove(matches[0])


class Events(Case):
    def test_events_are_those_of_an_offline_encode(self):
        limits = self.write_rules(FIRST, lambda values: sorted(values)[len(values) // 2])
        options = ["--rules", self.path("rules.toml"), "--events", self.path("events.jsonl")]
        with self.server(*self.recording(), *options, arguments=["-np", "2"]) as server:
            with concurrent.futures.ThreadPoolExecutor() as pool:
                list(pool.map(lambda job: server.complete(job[1], job[0], 24), enumerate((FIRST, SECOND))))
            server.stop()
            self.assert_accounts(server)
        with open(self.path("events.jsonl")) as file:
            events = [json.loads(line) for line in file]
        self.assertEqual([e["id"] for e in events], list(range(1, len(events) + 1)))
        found = sorted((e["latents"][0]["latent"], float_of(e["latents"][0]["value"])) for e in events)
        expected = sorted((latent, v) for latent, all_values in self.offline().items() if latent in limits
                          for v in all_values if v > float_of(limits[latent]))
        self.assertGreater(len(expected), 10)
        self.assertEqual(found, expected)
        self.assertEqual({e["site"] for e in events}, {f"layer-{LAYER}"})
        self.assertEqual({e["request"] for e in events}, {1, 2})

    def write_rules(self, text, limit):
        """Rules for latents that fire in a text, found by a recording of it; {latent: its limit}."""
        with self.server(*self.recording()) as server:
            server.complete(text, 0, 24)
        values = self.offline()
        often = sorted(values, key=lambda latent: (-len(values[latent]), latent))[:12]
        limits = {latent: limit(values[latent]) for latent in often}
        self.assertGreater(len(limits), 3)
        with open(self.path("rules.toml"), "w") as file:
            for latent, value in limits.items():
                file.write(f'[[rule]]\nname = "latent-{latent}"\nwhen = {{ latent = {latent}, above = {value} }}\n')
        for shard in glob.glob(self.path(f"recorded/layer-{LAYER}/*")):
            os.remove(shard)
        return limits

    def test_speculative_decoding_stays_one_request(self):
        self.write_rules(REPETITIVE, lambda values: 0)
        options = ["--rules", self.path("rules.toml"), "--events", self.path("events.jsonl")]
        drafts = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "2", "--spec-ngram-simple-size-m", "4",
                  "--spec-ngram-simple-min-hits", "1"]
        with self.server(*options, arguments=["-np", "1", *drafts]) as server:
            timings = server.complete(REPETITIVE, 0, 60)[2]["timings"]
            first = timings["draft_n"], timings["draft_n_accepted"]
            server.complete(REPETITIVE + " The dog", 0, 8)
            server.stop()
            self.assert_accounts(server)
        self.assertGreater(first[1], 0, "no draft was accepted: this shows nothing")
        self.assertGreater(first[0], first[1], "no draft was rejected: this shows nothing")
        with open(self.path("events.jsonl")) as file:
            events = [json.loads(line) for line in file]
        self.assertEqual({e["request"] for e in events}, {1, 2})
        matched = {e["id"]: e for e in events if e["kind"] == "matched"}
        retracted = [e for e in events if e["kind"] == "retracted"]
        self.assertGreater(len(retracted), 0)
        for event in retracted:
            self.assertEqual(matched[event["retracts"]]["position"], event["position"])
        # What was not taken back: each rule once a position, as if there had been no drafts.
        taken_back = {e["retracts"] for e in retracted}
        kept = [(e["request"], e["rule"], e["position"]) for e in matched.values() if e["id"] not in taken_back]
        self.assertEqual(len(kept), len(set(kept)))

    def offline(self):
        """{latent: its values} of what is recorded, as `kronsae encode` has them."""
        out = self.path("latents.safetensors")
        done = attached.program_output([KRONSAE, "encode", "--model", MODEL, "--data", self.path(f"recorded/layer-{LAYER}"),
                                        "--out", out])
        self.assertEqual(done.returncode, 0, done.stdout)
        _, t = tensors.read(out)
        (rows, k), indices = t["indices"]
        values, counts = t["values"][1], t["counts"][1]
        found = {}
        for r in range(rows):
            for i in range(counts[r]):
                found.setdefault(indices[r * k + i], []).append(values[r * k + i])
        return found

    def test_live_page_and_metrics(self):
        port = attached.free_port()
        with self.server("--listen", f"127.0.0.1:{port}", "--text") as server:
            server.complete(FIRST, 0, 8)
            base = f"http://127.0.0.1:{port}"
            self.assertIn(base, server.said("attached"))
            snapshot = server.get("/snapshot", base)
            self.assertIn(f"layer-{LAYER}", json.dumps(snapshot))
            with attached.urllib.request.urlopen(base + "/metrics") as answer:
                self.assertIn("kronsae_", answer.read().decode())


def float_of(value):
    """The 32-bit float that a decimal number stands for."""
    return tensors.array.array("f", [value])[0]


class Sites(Case):
    def test_several_layers(self):
        other = 3 if LAYER != 3 else 4
        with self.server("--model", f"{MODEL}@{other}", *self.recording("--record-layer", "29")) as server:
            server.complete(FIRST, 0, 8)
            server.stop()
            self.assert_accounts(server)
        by_layer = {layer: self.sequences(layer) for layer in (LAYER, other, 29)}
        self.assertEqual(by_layer[LAYER][0][:2], by_layer[other][0][:2])
        self.assertGreater(distance(by_layer[LAYER][0][2][3], by_layer[other][0][2][3]), 0.05)
        # Behind the last layer there are rows of tokens with outputs only: the prompt's last and the answer's.
        prompt = by_layer[LAYER][0][0]
        self.assertEqual(by_layer[29][0][0], prompt[-8:])
        self.assertEqual(by_layer[29][0][1], by_layer[LAYER][0][1][-8:])

    def test_rejected_drafts_and_later_requests(self):
        host = self.build("host.cpp", "host", "-I", f"{LLAMA}/include", "-I", f"{LLAMA}/ggml/include", "-L",
                          f"{LLAMA}/build/bin", "-lllama", f"-Wl,-rpath,{LLAMA}/build/bin", "-Wl,--allow-shlib-undefined")
        done = attached.program_output([*self.attach(*self.recording()), host, "draft", LLM])
        self.assertEqual(done.returncode, 0, done.stdout)
        found = [positions for _, positions, _ in self.sequences()]
        # The first request: its prompt, a draft, and the token that took the place of three of the draft's. Then another.
        self.assertEqual(found[0], list(range(1, 13)))
        self.assertEqual(found[1:], [[10], [4, 5, 6]])

    def build(self, source, name, *options):
        compiler = "g++" if source.endswith("pp") else "gcc"
        out = self.path(name)
        done = attached.program_output([compiler, "-O1", "-Wall", "-Wextra", os.path.join(HERE, source), "-o", out, *options])
        self.assertEqual(done.returncode, 0, done.stdout)
        return out


class Faults(Sites):
    # The builds of the other class, not its tests.
    test_several_layers = None
    test_rejected_drafts_and_later_requests = None

    def refused(self, command, *texts, code=3):
        done = attached.program_output(command)
        self.assertEqual(done.returncode, code, done.stdout)
        for text in texts:
            self.assertIn(text, done.stdout)
        self.assertNotIn("started", done.stdout)

    def host(self):
        return self.build("host.cpp", "host", "-I", f"{LLAMA}/include", "-I", f"{LLAMA}/ggml/include", "-L",
                          f"{LLAMA}/build/bin", "-lllama", f"-Wl,-rpath,{LLAMA}/build/bin", "-Wl,--allow-shlib-undefined")

    def test_programs_that_cannot_be_attached_to(self):
        self.refused([*self.attach(), "/bin/ls"], "imports llama_init_from_model")
        self.refused([*self.attach(), __file__], "not an ELF program")
        with open(self.path("static.c"), "w") as file:
            file.write("void *llama_init_from_model(void *m) { return m; }\nint main(void) { return llama_init_from_model(0) != 0; }\n")
        for option, text in (("-static", "statically linked"), ("-O0", "linked into it statically")):
            done = attached.program_output(["gcc", option, self.path("static.c"), "-o", self.path("static")])
            self.assertEqual(done.returncode, 0, done.stdout)
            self.refused([*self.attach(), self.path("static")], text)
        self.refused([*self.attach(), "no-such-program"], "no such program", code=127)

    def test_another_libllama(self):
        library = self.build("other_llama.c", "libllama.so", "-shared", "-fPIC")
        program = self.build("other_host.c", "other", "-L", self.folder.name, "-lllama", f"-Wl,-rpath,{self.folder.name}")
        self.refused([*self.attach(), program], "this libllama has no function")
        # One with all functions, and a struct of another size.
        with open(os.path.join(HERE, "../attach/abi.hpp")) as file:
            names = re.findall(r'"((?:ggml|llama)_\w+)"', file.read())
        with open(self.path("more.c"), "w") as file:
            for name in sorted(set(names) - {"llama_context_default_params", "llama_init_from_model"}):
                file.write(f"void {name}(void) {{}}\n")
        done = attached.program_output(["gcc", "-shared", "-fPIC", "-fno-builtin", "-w", self.path("more.c"),
                                        os.path.join(HERE, "other_llama.c"), "-o", library])
        self.assertEqual(done.returncode, 0, done.stdout)
        self.refused([*self.attach(), program], "llama_context_params has 24 bytes in this libllama")

    def test_what_does_not_start(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = "127.0.0.1:%d" % taken.getsockname()[1]
            self.refused([*self.attach("--listen", address), SERVER, "--version"], address)
        self.refused([*self.attach("--listen", "0.0.0.0:0"), SERVER, "--version"], "token")
        self.refused([*self.attach("--model", self.path("none"), model=False), SERVER, "--version"], "none")
        with open(self.path("bad.toml"), "w") as file:
            file.write('[[rule]]\nname = "r"\nwhen = { latent = 99999999, above = 1 }\n')
        self.refused([*self.attach("--rules", self.path("bad.toml")), SERVER, "--version"], "99999999")
        self.refused([*self.attach("--sample", "0"), SERVER], "--sample", code=2)
        self.refused([ATTACH, "--model", MODEL], "no program to start", code=2)

    def test_nothing_happens_before_a_context(self):
        host = self.host()
        bare = attached.program_output([host, "look"])
        done = attached.program_output([*self.attach("--listen", "127.0.0.1:0", "--events", self.path("events"), "--record",
                                                     self.path("recorded")), host, "look"])
        # Threads, files and sockets, and what a child process gets, are as without it.
        self.assertEqual(done.stdout, bare.stdout)
        self.assertIn("threads 1\n", done.stdout)
        self.assertTrue(done.stdout.endswith("\n0\n"), done.stdout)
        self.assertFalse(os.path.exists(self.path("events")) or os.path.exists(self.path("recorded")))

    def test_fork_and_exit(self):
        host = self.host()
        for mode in ("fork", "exit"):
            done = attached.program_output([*self.attach(), host, mode, LLM])
            self.assertEqual(done.returncode, 0, done.stdout)
            self.assertIn("attached to", done.stdout)
            if mode == "fork":
                # The parent alone was observed: 7 prompt tokens and one more.
                self.assertIn("submitted 8 = encoded 8 ", done.stdout)

    def test_required(self):
        # A layer that the LLM does not have.
        for required in (True, False):
            command = self.attach("--model", f"{MODEL}@77", *(("--required",) if required else ()), model=False)
            done = attached.program_output([*command, self.host(), "exit", LLM])
            self.assertIn("not attached: layer 77 is wanted", done.stdout)
            self.assertEqual(done.returncode, 9 if required else 0)

    def test_sigterm_in_the_middle_of_work(self):
        # Workers that may hardly run, and a signal while an answer is being computed. llama-server, attached or not, then
        # ends when the client has gone away.
        with self.server("--cpu-share", "0.001", "--stop-seconds", "5", "--listen", "127.0.0.1:0") as server:
            base = re.search(r"http://\S+", server.said("attached"))[0]

            def ask():
                try:
                    server.post("/completion", {"prompt": FIRST, "n_predict": 3000, "ignore_eos": True}, timeout=10)
                except (OSError, attached.http.client.HTTPException):
                    pass  # the client gives up, or is cut off

            with concurrent.futures.ThreadPoolExecutor() as pool:
                answer = pool.submit(ask)
                while sum(tap["counters"]["submitted"] for tap in server.get("/snapshot", base)["sites"][0]["taps"]) < 20:
                    self.assertFalse(answer.done(), "the answer was too fast: this shows nothing")
                code, seconds = server.stop()
                answer.result()
            self.assertEqual(code, 0, server.log()[:3000])
            self.assertLess(seconds, 100)
            self.assert_accounts(server, exact=False)


if __name__ == "__main__":
    program = unittest.main(exit=False, verbosity=2)
    result = program.result
    failed = len(result.failures) + len(result.errors)
    print(f"test result: {'ok' if result.wasSuccessful() else 'FAILED'}. {result.testsRun - failed} passed; {failed} failed; "
          f"{len(result.skipped)} skipped")
    raise SystemExit(0 if result.wasSuccessful() and result.testsRun > 0 else 1)
