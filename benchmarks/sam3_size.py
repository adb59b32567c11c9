"""How large SAM 3's vision tower is, and what one image costs: ``python benchmarks/sam3_size.py [--device cuda]``.

Random weights of the published sizes; needs the extra ``[sam3]``.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from torch import nn
from transformers import Sam3VisionConfig, Sam3VisionModel, Sam3ViTConfig

from ultrarefiner_monai.config import SamConfig
from ultrarefiner_monai.models.sam.network import build_sam, encode


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.device("meta"):
        whole = Sam3VisionModel(Sam3VisionConfig(backbone_config=Sam3ViTConfig()))
    print(f"{count(whole):,} parameters with the whole feature pyramid")
    sam = build_sam(SamConfig(arch="sam3", image_size=1008)).to(args.device)
    tower = sam.image_encoder.backbone.tower
    print(f"{count(tower):,} with the level that is used; {count(tower.backbone):,} of them in the trunk")
    image = torch.rand(1, 1, 1008, 1008, device=args.device)
    start, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        shape = tuple(encode(sam, image).shape)
    if args.device != "cpu":
        torch.cuda.synchronize()
    print(f"one image: {time.perf_counter() - start:.1f} s, {time.process_time() - cpu:.1f} CPU-s, embedding {shape}")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB of memory at most")


if __name__ == "__main__":
    main()
