#!/bin/bash
# Trains a small model from nothing on painted scenes and on a folder of images, in minutes of one GPU, and measures it on the
# held-back part of both:
#
#   experiments/gpu_minutes.sh IMAGES OUT [KEY=VALUE ...]
#
# IMAGES is what data.root of data=folder may be; OUT gets the figures, the weights and the log. The settings are those of
# +experiment=pretrain scale=gpu_minutes, KEY=VALUE changes them. Scenes are resized to the input, IMAGES are cut into tiles of
# their own pixels. Environment:
#   STEPS    number of steps; by default as many as fit into TRAIN_SECONDS (200), at the speed of 60 steps that are run before
#   BATCH    images per step (48)
#   SCENES   number of painted scenes for training (8000)
#   WEIGHT   how often an image of IMAGES is shown for each time that a scene is shown (54)
set -euo pipefail
images=$1 out=$2
shift 2
batch=${BATCH:-48} seconds=${TRAIN_SECONDS:-200} work=$(mktemp -d)
run=$work/run
mkdir -p "$out"
samtrain() { python3 -m samtrain "$@" 2>&1; }
say() { echo "$(date +%T) $*" | tee -a "$out/log.txt"; }

say "Painting scenes and converting $images"
samtrain task=prepare scale=gpu_minutes data.splits.public="${SCENES:-8000}" data.splits.pool=0 data.splits.crowded=0 data_dir="$work/scenes" \
  run_dir="$work/prepare_scenes" > "$work/scenes.txt" &
painting=$!
samtrain task=prepare scale=gpu_minutes data=folder data.root="$images" data.frame=native data_dir="$work/images" \
  run_dir="$work/prepare_images" > "$work/images.txt"
wait $painting

# a batch of 256 pixels takes about 32 MB of shared memory, and each worker prepares four ahead
workers=$(($(df --output=avail -m /dev/shm | tail -1) / 130))
cores=$(($(nproc) - 2))
workers=$((workers < cores ? workers : cores))
fit=(+experiment=pretrain scale=gpu_minutes data=shards
  "data.train={scenes:{urls:'$work/scenes/*/public'},images:{urls:'$work/images/*/pool',weight:${WEIGHT:-54},frame:native}}"
  "data.val=$work/scenes/*/val" loader.batch_size="$batch" trainer.images_per_step="$batch"
  loader.num_workers=$((workers > 0 ? workers : 0)) recipes.vit_small.warmup_steps=100 "$@")

if [ -z "${STEPS:-}" ]; then
  say "Measuring the speed with $workers workers"
  samtrain "${fit[@]}" trainer.max_steps=60 run_dir="$work/probe" > "$work/probe.txt" || { tail -20 "$work/probe.txt"; exit 1; }
  speed=$(grep -o 'images/s [0-9.]*' "$work/probe.txt" | tail -1 | cut -d' ' -f2)
  STEPS=$(python3 -c "print(max(60, int($seconds * $speed / $batch)))")
  say "$speed images/s: $STEPS steps in $seconds s"
fi

say "Training"
samtrain "${fit[@]}" trainer.max_steps="$STEPS" "data.test=$work/scenes/*/test" run_dir="$run" | tee -a "$out/log.txt"
cp "$run"/metrics.csv "$run"/metrics.json "$run"/report.html "$out"

say "Measuring the held-back part of $images, and writing the weights"
samtrain task=export checkpoint="$run/checkpoints/best.ckpt" export.path="$out/model.safetensors" run_dir="$work/export" \
  > "$work/export.txt" &
exporting=$!
samtrain task=evaluate scale=gpu_minutes checkpoint="$run/checkpoints/best.ckpt" data=folder data.root="$images" \
  data.frame=native data_dir="$work/images" run_dir="$work/evaluate" | tee -a "$out/log.txt"
cp "$work/evaluate/metrics.json" "$out/images.json"
find "$run/panels" -type f | sort | tail -1 | xargs -I{} cp {} "$out"
wait $exporting
say "Done"
