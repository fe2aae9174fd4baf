#!/usr/bin/env bash
# Sets everything up, pretrains on real images with two workers, evaluates, and says where to look.
# Usage: ./scripts/demo.sh [WORKDIR]      (default: runs/demo; a finished demo there is only evaluated again)
set -euo pipefail

caller_dir=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
workdir=${1:-runs/demo}
if [ $# -gt 0 ]; then case $workdir in /*) ;; *) workdir=$caller_dir/$workdir ;; esac; fi

./scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH" TF_CPP_MIN_LOG_LEVEL=3
started=$SECONDS

pretrain() { python -m scripts.launch -np 2 pretrain --flagfile=flags/presets/digits.flags "$@"; }

printf '\n== 1,437 handwritten digits, each a class of its own: contrastive prior and smoothed labels\n'
pretrain --workdir="$workdir/prior"
printf '\n== the same with Gaussian class weights\n'
pretrain --workdir="$workdir/gaussian" --classifier_init=random
printf '\n== the same network before training\n'
python -m scripts.pretrain --flagfile=flags/presets/digits.flags --workdir="$workdir/untrained" --max_steps=0

printf '\n== nearest-neighbour accuracy on 360 held-out digits\n'
runs="untrained=$workdir/untrained,trained from Gaussian class weights=$workdir/gaussian"
python -m scripts.compare --output="$workdir" --runs="$runs,trained from the prior=$workdir/prior"

printf '\nThe demo took %d seconds after set-up. Look at:\n' $((SECONDS - started))
printf '  %s\n' "$workdir/comparison.png (loss curves; queries and their nearest neighbours)" \
  "$workdir/prior/metrics.jsonl (the run, step by step)" "$workdir/prior (tensorboard --logdir)"
