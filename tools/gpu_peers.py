#!/usr/bin/env python3
"""Training steps and encodes of the peers on one GPU, timed the way `kronsae gpu` times ours: medians of many calls.

    gpu_peers.py [--shape 2304,8192,2,4] [--k 50] [--batch 8192] [--steps 30] [--json FILE]

Peers: the KronSAE of the paper's listing in eager PyTorch (every latent of every token is materialised), the same with a
sparse decoder, and the TopK of as many latents of sparsify (the Python package eai-sparsify); all with bf16 autocast and
torch's fused Adam. Who cannot be measured is named with the reason under "skipped". Without a GPU (or with --tiny) a tiny shape runs on the CPU: that shows that this
program works and says nothing about speed; the JSON says so.
"""
import argparse
import contextlib
import json
import math
import os
import statistics
import sys
import time


def arguments():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--shape", default="2304,8192,2,4", help="d_model,heads,base,extension")
    a.add_argument("--k", type=int, default=50)
    a.add_argument("--batch", type=int, default=8192)
    a.add_argument("--steps", type=int, default=30, help="timed calls; a third as many before them are not timed")
    a.add_argument("--tiny", action="store_true", help="a tiny shape, on the CPU where there is no GPU")
    a.add_argument("--json", help="where the result is written; standard output without it")
    return a.parse_args()


def kron(torch, d, h, m, n, k, device, sparse_decoder):
    """A KronSAE as an nn.Module. Its forward pass gives the reconstruction."""
    f = torch.nn.functional
    latents = h * m * n

    class Kron(torch.nn.Module):
        def __init__(self):
            super().__init__()
            weight = torch.randn(h * (m + n), d, device=device) / math.sqrt(d)
            by_head = weight.view(h, m + n, d)
            atoms = (by_head[:, :m, None] + by_head[:, None, m:]).reshape(latents, d)
            self.weight = torch.nn.Parameter(weight)
            self.bias = torch.nn.Parameter(torch.zeros(h * (m + n), device=device))
            self.decoder = torch.nn.Parameter(atoms / atoms.norm(dim=1, keepdim=True))
            self.decoder_bias = torch.nn.Parameter(torch.zeros(d, device=device))

        def encode(self, x):
            y = f.relu(f.linear(x, self.weight, self.bias)).view(-1, h, m + n)
            scores = torch.sqrt(y[:, :, :m, None] * y[:, :, None, m:] + 1e-5).reshape(len(x), latents)
            return scores.topk(k, dim=1)

        def forward(self, x):
            values, indices = self.encode(x)
            if sparse_decoder:
                return f.embedding_bag(indices, self.decoder, per_sample_weights=values.float(), mode="sum") + self.decoder_bias
            full = torch.zeros(len(x), latents, device=device, dtype=values.dtype).scatter(1, indices, values)
            return full @ self.decoder.to(values.dtype) + self.decoder_bias

        @torch.no_grad()
        def after_step(self):
            self.decoder /= self.decoder.norm(dim=1, keepdim=True)

        @torch.no_grad()
        def before_step(self):
            along = (self.decoder.grad * self.decoder).sum(dim=1, keepdim=True)
            self.decoder.grad -= along * self.decoder

    return Kron()


def sparsify_topk(torch, d, latents, k, device):
    """sparsify's TopK SAE with its own decoder (Triton where it has that), or raises with what is missing."""
    if device != "cuda":
        # Its Triton kernels need a GPU; it looks at this when it is imported.
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    with contextlib.redirect_stdout(sys.stderr):  # it says which decoder it takes
        import sparsify

    config = getattr(sparsify, "SparseCoderConfig", None) or sparsify.SaeConfig
    coder = getattr(sparsify, "SparseCoder", None) or sparsify.Sae
    sae = coder(d, config(num_latents=latents, k=k), device=device, dtype=torch.float32)
    implementation = "unknown"
    try:
        from sparsify import utils

        implementation = getattr(utils.decoder_impl, "__name__", "unknown")
    except (ImportError, AttributeError):
        pass
    return sae, implementation


def time_calls(torch, device, call, steps):
    """Milliseconds of each of `steps` calls, after a third as many that are not timed."""
    for _ in range(max(steps // 3, 2)):
        call()
    times = []
    if device == "cuda":
        torch.cuda.synchronize()
        events = []
        for _ in range(steps):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        times = [start.elapsed_time(end) for start, end in events]
    else:
        for _ in range(steps):
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
    return times


def measure(torch, device, name, sae, loss_of, encode, batch, d, steps, hooks):
    """One peer: its training step, its encode, and the memory the step takes beyond parameters and moments."""
    x = torch.randn(batch, d, device=device)
    try:
        optimiser = torch.optim.Adam(sae.parameters(), lr=8e-4, fused=device == "cuda")
    except (RuntimeError, TypeError):
        optimiser = torch.optim.Adam(sae.parameters(), lr=8e-4)

    def step():
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = loss_of(x)
        loss.backward()
        if "before" in hooks:
            hooks["before"]()
        optimiser.step()
        if "after" in hooks:
            hooks["after"]()

    def forward():
        with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
            encode(x)

    def summary(times):
        return {"median_ms": statistics.median(times), "best_ms": min(times), "calls": len(times)}

    result = {"name": name}
    step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    result["step"] = summary(time_calls(torch, device, step, steps))
    if device == "cuda":
        parameters = sum(p.numel() * p.element_size() for p in sae.parameters())
        result["peak_bytes_beyond_parameters_and_moments"] = torch.cuda.max_memory_allocated() - 3 * parameters
    result["encode"] = summary(time_calls(torch, device, forward, steps))
    return result


def product(torch, device, rows, d, batch, steps):
    """The bare product of the encoder's shape in bf16, by torch: what the machine does with nothing around it."""
    x = torch.randn(batch, d, device=device).bfloat16()
    w = torch.randn(rows, d, device=device).bfloat16()
    times = time_calls(torch, device, lambda: x @ w.T, steps)
    return {"median_ms": statistics.median(times), "best_ms": min(times), "calls": len(times)}


def main():
    o = arguments()
    report = {"peers": [], "skipped": []}
    try:
        import torch
    except ImportError as error:
        report["skipped"].append(f"all: torch cannot be imported: {error}")
        return write(o, report)
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    if not (cuda or o.tiny):
        report["skipped"].append("all: torch sees no CUDA device; --tiny shows on the CPU that this program works")
        return write(o, report)
    d, h, m, n = (32, 16, 2, 4) if o.tiny else map(int, o.shape.split(","))
    k, batch, steps = (4, 64, 6) if o.tiny else (o.k, o.batch, o.steps)
    latents = h * m * n
    torch.manual_seed(0)
    report["torch"] = torch.__version__
    report["device"] = torch.cuda.get_device_name() if cuda else "cpu: these times say nothing about a GPU"
    report["shape"] = {"d_model": d, "heads": h, "base": m, "extension": n, "latents": latents, "k": k, "batch": batch}
    report["product"] = product(torch, device, h * (m + n), d, batch, steps)

    def kron_peer(name, sparse):
        sae = kron(torch, d, h, m, n, k, device, sparse)

        def loss(x):
            return ((sae(x) - x) ** 2).mean()

        hooks = {"before": sae.before_step, "after": sae.after_step}
        return measure(torch, device, name, sae, loss, sae.encode, batch, d, steps, hooks)

    def sparsify_peer(name):
        sae, implementation = sparsify_topk(torch, d, latents, k, device)

        def loss(x):
            return sae(x).fvu

        def before():
            remove = getattr(sae, "remove_gradient_parallel_to_decoder_directions", None)
            if remove:
                remove()

        hooks = {"before": before, "after": sae.set_decoder_norm_to_unit_norm}
        result = measure(torch, device, name, sae, loss, sae.encode, batch, d, steps, hooks)
        return {**result, "decoder": implementation}

    peers = [
        ("PyTorch KronSAE, eager, as in the paper's listing", lambda name: kron_peer(name, False)),
        ("PyTorch KronSAE, eager, sparse decoder", lambda name: kron_peer(name, True)),
        ("sparsify TopK of the same F", sparsify_peer),
    ]
    for name, peer in peers:
        try:
            report["peers"].append(peer(name))
        except ImportError as error:
            report["skipped"].append(f"{name}: cannot be imported: {error}")
        except Exception as error:  # a peer that breaks must not take the others with it
            report["skipped"].append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        if cuda:
            torch.cuda.empty_cache()
    return write(o, report)


def write(o, report):
    text = json.dumps(report, indent=2) + "\n"
    if o.json:
        with open(o.json, "w") as out:
            out.write(text)
    else:
        sys.stdout.write(text)
    for reason in report["skipped"]:
        print(f"skipped: {reason}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
