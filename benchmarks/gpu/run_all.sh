#!/usr/bin/env bash
# Every check and measurement that needs a GPU; leaves dated result files in benchmarks/results/.
# A script that fails does not keep the others from running; the exit code says whether one did.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
out=benchmarks/results/$(date +%Y-%m-%d)-gpu
mkdir -p "$out"
{
  date --utc
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
  "$python" -c "import torch; print('torch', torch.__version__, 'cuda', torch.version.cuda)"
  git rev-parse HEAD 2>/dev/null
} >"$out/machine.txt" 2>&1
failed=0
for script in benchmarks/gpu/*.py; do
  name=$(basename "$script" .py)
  echo "== $name"
  "$python" "$script" --json >"$out/$name.json" 2>"$out/$name.log" || { echo "$name failed, see $out/$name.log"; failed=1; }
done
"$python" -m pytest -m gpu --override-ini addopts= tests >"$out/tests.log" 2>&1
code=$?
[ $code -eq 0 ] || [ $code -eq 5 ] || failed=1   # 5: no test carries the marker
exit $failed
