"""SAM's image encoder: ours against segment_anything's own, same weights, same image, in one run.

python benchmarks/bench_encoder.py [--arch vit_b] [--threads 2] [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from segment_anything import sam_model_registry

from ultrarefiner_monai.config import SamConfig
from ultrarefiner_monai.models.sam.network import build_sam, encode, normalise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vit_b", choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    theirs = sam_model_registry[args.arch]().eval()
    # segment_anything starts its relative positions at zero, where an error in them would not show.
    for name, parameter in theirs.image_encoder.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ours = build_sam(SamConfig(arch=args.arch))
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(1, 1, 1024, 1024)
    ways = {
        "segment_anything": lambda: theirs.image_encoder(normalise(image, theirs.image_encoder)),
        "ours": lambda: encode(ours, image),
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    embeddings = {}
    with torch.no_grad():
        for run in ways.values():  # the first of each pays for its memory
            run()
        for _ in range(args.repeats):  # turn by turn, so that a busy machine slows both alike
            for name, run in ways.items():
                wall, cpu = time.perf_counter(), time.process_time()
                embeddings[name] = run()
                results[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print(f"{args.arch} at 1024 px, batch 1, {args.threads} threads, median of {args.repeats}")
    medians = {name: [statistics.median(kind) for kind in zip(*times)] for name, times in results.items()}
    for name, (wall, cpu) in medians.items():
        print(f"{name:18s} wall {wall:6.2f} s   cpu {cpu:6.2f} s")
    (a, b), (c, d) = medians["segment_anything"], medians["ours"]
    difference = (embeddings["segment_anything"] - embeddings["ours"]).abs().max().item()
    print(
        f"times faster       wall {a / c:6.2f}     cpu {b / d:6.2f}     (goal 1.4)   largest difference {difference:.1e}"
    )


if __name__ == "__main__":
    main()
