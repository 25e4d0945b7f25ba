#!/usr/bin/env python3
"""Writes rules and labels for features that fire now and then: SHARDS LATENTS RULES LABELS.

A label is the tokens that the feature fires on most strongly: what a quick look shows, not an explanation.
"""

import collections
import glob
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "tests"))
import tensors


def texts(folder):
    """The text of each recorded token, in the order of the shards."""
    out = []
    for shard in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        _, t = tensors.read(shard)
        data, offsets = t["text"][1].tobytes(), t["text_offsets"][1]
        out.extend(data[offsets[i] : offsets[i + 1]].decode(errors="replace") for i in range(len(offsets) - 1))
    return out


def main(shards, latents, rules, labels):
    words = texts(shards)
    _, t = tensors.read(latents)
    (rows, k), indices = t["indices"]
    values, counts = t["values"][1], t["counts"][1]
    firing = collections.defaultdict(list)
    for row in range(rows):
        for i in range(row * k, row * k + counts[row]):
            firing[indices[i]].append((values[i], row))
    named = {}
    for latent, found in firing.items():
        strongest = sorted(found, reverse=True)[:5]
        named[latent] = " ".join(dict.fromkeys(words[row].strip() for _, row in strongest if words[row].strip())) or "(space)"
    with open(labels, "w", encoding="utf-8") as file:
        for latent in sorted(named):
            label = "".join(c if c.isprintable() else " " for c in named[latent])[:60]
            file.write(f"{latent}\t{label.strip() or '(unprintable)'}\n")
    # Often enough to be seen in a short talk, seldom enough to say something.
    seldom = [latent for latent, found in firing.items() if 0.005 * rows <= len(found) <= 0.2 * rows]
    chosen = sorted(seldom or firing, key=lambda latent: (-len(firing[latent]), latent))[:12]
    if not chosen:
        raise SystemExit("no latent fires at all: the model is not trained")
    with open(rules, "w", encoding="utf-8") as file:
        for latent in chosen:
            found = sorted(value for value, _ in firing[latent])
            file.write(f'[[rule]]\nname = "feature-{latent}"\nwhen = {{ latent = {latent}, above = {found[len(found) // 2]:.6} }}\n\n')
    print(f"{len(chosen)} rules, {len(named)} labels")


if __name__ == "__main__":
    main(*sys.argv[1:])
