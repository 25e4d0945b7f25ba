#!/usr/bin/env python3
"""Starts llama-server with monitoring attached, talks to it, and shows what fired. Serves on until Ctrl-C, or not (--once)."""

import argparse
import collections
import concurrent.futures
import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "tests"))
import attached

QUESTIONS = ["Write a short Python function that reverses a list.", "What is a river? Answer in one sentence."]
FOLLOW_UP = "Now say it more simply."


def chat(server, slot, messages):
    answer = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 32, "temperature": 0, "id_slot": slot})
    return answer["choices"][0]["message"]["content"]


def main():
    arguments = argparse.ArgumentParser()
    for name in ("events", "log", "llm", "server"):
        arguments.add_argument(f"--{name}", required=True)
    arguments.add_argument("--once", action="store_true")
    arguments.add_argument("command", nargs="+")
    options = arguments.parse_args()
    command = options.command if options.command[-1] == "--" else [*options.command, "--"]
    with attached.Server(command, options.server, options.llm, options.log, ["-c", "4096", "-np", "2"]) as server:
        said = server.said("attached to")
        if not said:
            raise SystemExit(f"monitoring is not attached:\n{server.log()[:3000]}")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            talks = [[{"role": "user", "content": question}] for question in QUESTIONS]
            for talk, answer in zip(talks, pool.map(lambda job: chat(server, *job), enumerate(talks))):
                talk.append({"role": "assistant", "content": answer})
        talks[1].append({"role": "user", "content": FOLLOW_UP})
        talks[1].append({"role": "assistant", "content": chat(server, 1, talks[1])})
        for talk in talks:
            for line in talk:
                print(f"  {line['role']}: {' '.join(line['content'].split())}")
        time.sleep(1)
        with open(options.events) as file:
            events = [json.loads(line) for line in file]
        if not events:
            raise SystemExit("no rule matched")
        print(f"\n{len(events)} events of {len({e['request'] for e in events})} requests; the first of each rule:")
        for rule, (event, times) in first_of_each(events).items():
            print(f"  {rule}: {times} times, first at request {event['request']}, position {event['position']}, "
                  f"value {event['latents'][0]['value']:.3g}")
        print(f"\n{said}")
        if options.once:
            server.stop()
            line = server.said("ended: ")
            print(line)
            numbers = attached.accounts(line)
            accounted = sum(numbers[name] for name in ("encoded", "sampled out", "dropped", "not finite"))
            if numbers["submitted"] != accounted or numbers["unmapped"] or len({e["request"] for e in events}) < 2:
                raise SystemExit("the tokens do not add up")
            return
        print(f"The chat is at http://127.0.0.1:{server.port}; Ctrl-C ends both.")
        try:
            server.process.wait()
        except KeyboardInterrupt:
            pass


def first_of_each(events):
    found = collections.OrderedDict()
    for event in events:
        first, times = found.get(event["rule"], (event, 0))
        found[event["rule"]] = (first, times + 1)
    return found


if __name__ == "__main__":
    main()
