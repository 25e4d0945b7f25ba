"""Times encoders in PyTorch for `kronsae bench encode`, one command a line on stdin, one answer a line on stdout.

    model dense|kron D HEADS BASE EXTENSION K THREADS   -> ok, the model of that name is made
    run dense|kron ROWS CALLS                           -> ns T1 T2 ...
    drop dense|kron                                     -> ok

Weights and tokens are random, bfloat16. A call is timed inside this process: pipes are not in it.
"""

import sys
import time

import torch


def dense(weight, bias, shape):
    d, heads, base, extension, k = shape

    def encode(x):
        y = torch.relu(torch.nn.functional.linear(x, weight, bias))
        return torch.topk(y, k, dim=1)

    return encode


def kron(weight, bias, shape):
    d, heads, base, extension, k = shape
    latents = base * extension

    def encode(x):
        y = torch.relu(torch.nn.functional.linear(x, weight, bias)).view(-1, heads, base + extension)
        p, q = y[:, :, :base], y[:, :, base:]
        if k >= heads:
            squares, indices = torch.topk((p.unsqueeze(3) * q.unsqueeze(2)).flatten(1), k, dim=1)
            return torch.sqrt(squares), indices
        # The heads with the k largest maxima hold the k largest latents.
        strongest = torch.topk(p.amax(2) * q.amax(2), k, dim=1).indices
        p = p.gather(1, strongest.unsqueeze(2).expand(-1, -1, base))
        q = q.gather(1, strongest.unsqueeze(2).expand(-1, -1, extension))
        squares, candidates = torch.topk((p.unsqueeze(3) * q.unsqueeze(2)).flatten(1), k, dim=1)
        head = strongest.gather(1, candidates // latents)
        return torch.sqrt(squares), head * latents + candidates % latents

    return encode


class Model:
    def __init__(self, kind, shape):
        d, heads, base, extension, _ = shape
        torch.manual_seed(1)
        rows = heads * base * extension if kind == "dense" else heads * (base + extension)
        weight = torch.empty(rows, d, dtype=torch.bfloat16).normal_(0, d**-0.5)
        build = {"dense": dense, "kron": kron}[kind]
        self.encode = build(weight, torch.zeros(rows, dtype=torch.bfloat16), shape)
        self.d = d
        self.tokens = torch.empty(0, d, dtype=torch.bfloat16)
        self.at = 0

    def run(self, rows, calls):
        """Nanoseconds of each call, on tokens that change from call to call."""
        if len(self.tokens) < 4 * rows:
            self.tokens = torch.randn(4 * rows, self.d).to(torch.bfloat16)
        times = []
        for _ in range(calls):
            first = self.at % (len(self.tokens) - rows + 1)
            self.at += rows
            x = self.tokens[first : first + rows]
            start = time.perf_counter_ns()
            self.encode(x)
            times.append(time.perf_counter_ns() - start)
        return times


def answer(command, models):
    verb, kind, *numbers = command
    numbers = [int(number) for number in numbers]
    if verb == "model":
        torch.set_num_threads(numbers.pop())
        models[kind] = Model(kind, numbers)
        return "ok"
    if verb == "run":
        return "ns " + " ".join(map(str, models[kind].run(*numbers)))
    if verb == "drop":
        models.pop(kind, None)
        return "ok"
    return "error unknown command"


def main():
    torch.set_grad_enabled(False)
    print("ready torch", torch.__version__, "Python", sys.version.split()[0], flush=True)
    models = {}
    for line in sys.stdin:
        try:
            said = answer(line.split(), models)
        except Exception as error:
            said = "error " + " ".join(str(error).split())
        print(said, flush=True)


main()
