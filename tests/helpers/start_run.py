"""``toolkit train`` with the faulty trainer, for a run that has a plan: ``start_run.py RUN FAULT...``"""

from __future__ import annotations

import sys
from pathlib import Path

from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.runs.folder import RunFiles
from toolkit.runs.plan import read_plan
from toolkit.supervision.supervisor import supervise

if __name__ == "__main__":
    run, faults = Path(sys.argv[1]), sys.argv[2:]
    worker = [sys.executable, str(Path(__file__).parent / "faulty_worker.py"), str(run), *faults]
    try:
        supervise(read_plan(RunFiles(run)), command=worker)
    except ToolkitError as error:
        console.fail(error)
        sys.exit(error.exit_code)
