#!/usr/bin/env bash
# All measurements on one accelerator, in under nine minutes; again with the same OUT goes on.
#
#     bash experiments/benchmarks/accelerator/run.sh OUT
#     TINY=1 bash experiments/benchmarks/accelerator/run.sh OUT --seconds 3000    # a rehearsal on a CPU
set -eu
out=$(realpath -m "${1:?usage: run.sh OUT [options of stages.py]}")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
python=${PYTHON:-python3}
"$python" -m experiments.benchmarks.accelerator.stages "$out" "$@"
"$python" -m experiments.benchmarks.accelerator "$out" | tee "$out/summary.md"
