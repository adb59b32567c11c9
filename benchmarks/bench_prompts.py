"""CPU-seconds of deriving prompts, forward and backward: ``python benchmarks/bench_prompts.py --size 1024``."""

from __future__ import annotations

import argparse
import time

import torch

from ultrarefiner_monai.config import PromptConfig
from ultrarefiner_monai.models.prompts.derive import derive_prompts

CASES = {
    "box + points": (PromptConfig(mask="none"), 0.02),
    "with direct mask": (PromptConfig(mask="direct"), 0.1),
    "with gaussian mask": (PromptConfig(mask="gaussian"), 0.3),
    "with distance mask": (PromptConfig(mask="distance"), None),
}


def lesions(batch: int, size: int) -> torch.Tensor:
    """Soft ellipses of different places and sizes: (batch, 1, size, size) in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    out = []
    for i in range(batch):
        cx, cy, a, b = (
            size * (0.35 + 0.08 * i),
            size * (0.6 - 0.06 * i),
            size * (0.1 + 0.03 * i),
            size * (0.08 + 0.02 * i),
        )
        out.append(torch.sigmoid((1 - ((x - cx) / a) ** 2 - ((y - cy) / b) ** 2) * 6))
    return torch.stack(out)[:, None]


def cpu_seconds(config: PromptConfig, prob: torch.Tensor) -> float:
    """Seconds over all threads of one forward and backward."""
    leaf = prob.clone().requires_grad_()
    start = time.process_time()
    prompts = derive_prompts(leaf, config)
    parts = (prompts.points_xy, prompts.boxes_xyxy, prompts.mask_logits)
    total = torch.stack([part.sum() for part in parts if part is not None]).sum()
    total.backward()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prob = lesions(args.batch, args.size)
    print(
        f"prompts, forward + backward, {args.batch} x {args.size} x {args.size}, {args.threads} thread(s), CPU-seconds"
    )
    for name, (config, goal) in CASES.items():
        times = sorted(cpu_seconds(config, prob) for _ in range(args.repeats + 1))
        text = "" if goal is None else f"   goal {goal:g}"
        print(f"{name:20s} median {times[len(times) // 2]:.4f}  best {times[0]:.4f}{text}")


if __name__ == "__main__":
    main()
