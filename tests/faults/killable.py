"""A process that publishes what it is told to and may be killed meanwhile: `python killable.py < jobs`.

Each line of stdin is a job.  It is done by a fork, so that the imports are paid for once; the fork's number is printed,
and then how it ended.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from fault_world import SCENARIOS, Case, publish


def main() -> None:
    """Do one job after the other."""
    import huggingface_hub.file_download
    import huggingface_hub.hf_api  # noqa: F401 - what every fork needs

    from hubprune.hub import commit, preflight, transfer  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        if not (child := os.fork()):
            _run(job)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


def _run(job: dict[str, str]) -> None:
    """Publish, with stdout and stderr in a file, and end the process."""
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        from huggingface_hub import constants

        scenario = next(s for s in SCENARIOS if s.name == job["scenario"])
        constants.HF_HUB_DISABLE_XET = not scenario.xet
        constants.HF_HUB_CACHE = job["cache"]
        case = Case(scenario, job["repo_id"], Path(job["folder"]), Path(job["cache"]))
        publish(case, endpoint=job["endpoint"], token=job["token"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
