"""The process of one quick run: ``python -m ultrarefiner_monai.learning.quick.worker JOB``, JOB being JSON.

It is nice, computes with few threads, and prints one line of JSON as its last: what came of the run, or why not.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

ERROR = "error"  # the key of the last line when nothing was learnt


def main(text: str) -> int:
    begun, values = time.monotonic(), json.loads(text)
    if hasattr(os, "nice"):
        os.nice(int(values["options"]["nice"]))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is loaded
        os.environ[name] = str(values["options"]["threads"])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    from ultrarefiner_monai.learning.quick.run import QuickRun, as_line, remember
    from ultrarefiner_monai.learning.retraining import reason_of

    job = _job(values, begun)
    try:
        result = QuickRun(job)()
        print(as_line(result), flush=True)
        remember(job.work, result.to_dict())
    except Exception as error:  # whatever it is, its user gets to know, and the champion serves
        logging.getLogger(__name__).warning("quick learning failed", exc_info=True)
        print(json.dumps({ERROR: " ".join(reason_of(error).split())}), flush=True)
        return 1
    return 0


def _job(values: dict[str, Any], begun: float) -> Any:
    import torch

    from ultrarefiner_monai.config import LearningConfig, from_dict
    from ultrarefiner_monai.core.image_file import Limits
    from ultrarefiner_monai.learning.quick.run import Job
    from ultrarefiner_monai.studies.work_folder import WorkFolder

    options = from_dict(LearningConfig, values["options"])
    torch.set_num_threads(options.threads)
    return Job(
        WorkFolder(Path(values["work"])),
        values["studies"],
        Path(values["base"]),
        Path(values["refiner"]) if values.get("refiner") else None,
        options,
        values.get("device", "cpu"),
        Limits(total_pixels=values["max_pixels"]),
        begun - float(values.get("late", 0.0)),
        float(options.quick_seconds),
        values.get("steps"),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
