#!/usr/bin/env bash
# Every check and measurement that needs a GPU; leaves dated result files in benchmarks/results/.
#
#   benchmarks/gpu/run_all.sh            PYTHON=… chooses the interpreter, LIMIT=… the seconds each step may take
#
# A step that fails or takes too long does not keep the others from running; the exit code says whether one did.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
python=${PYTHON:-python3}
limit=${LIMIT:-400}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
  echo "run_all.sh: $python sees no CUDA device, or has no torch; set PYTHON to an interpreter that does" >&2
  exit 2
fi
out=benchmarks/results/$(date +%Y-%m-%d)-gpu
mkdir -p "$out" || exit 1
{
  date --utc
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
  "$python" -c "import sys, torch; print('python', sys.version.split()[0], 'torch', torch.__version__, 'cuda', torch.version.cuda)"
  git rev-parse HEAD
} >"$out/machine.txt" 2>&1
failed=0
for script in benchmarks/gpu/*.py; do
  name=$(basename "$script" .py)
  echo "== $name"
  timeout "$limit" "$python" "$script" --json >"$out/$name.json" 2>"$out/$name.log" ||
    { echo "$name failed, see $out/$name.log"; failed=1; }
done
echo "== tests"
timeout "$limit" "$python" -m pytest -m gpu --override-ini addopts=--import-mode=importlib tests >"$out/tests.log" 2>&1
code=$?
tail -n 1 "$out/tests.log"
[ $code -eq 0 ] || [ $code -eq 5 ] || { echo "tests failed, see $out/tests.log"; failed=1; } # 5: none is marked gpu
exit $failed
