"""Five minutes of `make soak`."""

import subprocess
import sys

import pytest

from experiments.soak.faults import FAULTS


@pytest.mark.slow
def test_a_run_that_meets_every_kind_of_fault_ends_as_one_that_nobody_touched():
    command = [sys.executable, "-m", "experiments.soak", "--faults", "240", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "equal to the last bit"
    counts = done.stdout.splitlines()[-2 - len(FAULTS) : -2]
    assert sum(int(line.split()[0]) for line in counts) == 240
