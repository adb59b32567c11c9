"""The process of quick runs: ``python -m ultrarefiner_monai.learning.quick.worker``; each line of its input is a job, as JSON.

It is nice and computes with few threads. To each job it answers with one line, ANSWER and JSON: what came of the run, or
under ``error`` why not. It stays between two jobs, for its imports cost a third of the time; at the input's end it ends.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ANSWER = "quick-run: "
ERROR = "error"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    first = True
    for line in sys.stdin:
        begun, values = time.monotonic(), json.loads(line)
        if first:
            _stand_back(values["options"])
        first = False
        print(ANSWER + json.dumps(_answer(values, begun), separators=(",", ":")), flush=True)


def _stand_back(options: dict[str, Any]) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is loaded
        os.environ.setdefault(name, str(options["threads"]))
    from ultrarefiner_monai.core.threads import stand_back

    stand_back(int(options["nice"]), int(options["threads"]))


def _answer(values: dict[str, Any], begun: float) -> dict[str, Any]:
    from ultrarefiner_monai.learning.quick.run import QuickRun, remember
    from ultrarefiner_monai.learning.retraining import reason_of

    try:
        job = _job(values, begun)
        result = QuickRun(job)().to_dict()
        with suppress(OSError):  # it is what it is, even where the disk is too full to say so
            remember(job.work, result)
        return result
    except Exception as error:  # whatever it is, its user gets to know, and the champion serves
        logging.getLogger(__name__).warning("quick learning failed", exc_info=True)
        return {ERROR: " ".join(reason_of(error).split()) or type(error).__name__}


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
        begun,
        float(options.quick_seconds),
        values.get("steps"),
    )


if __name__ == "__main__":
    main()
