#!/bin/sh
# The five-fold table of nuinsseg.md, the folds side by side: on one GPU, or on as many CPU cores as there are folds.
#
#   sh docs/results/nuinsseg.sh DATA WEIGHTS RUN [OPTIONS OF nuclora cv]
#
# Started again it goes on from what RUN holds. FOLDS="1 2" does some folds only.
set -eu
data=$1 weights=$2 run=$3
shift 3
: "${OMP_NUM_THREADS:=1}" "${FOLDS:=1 2 3 4 5}" "${RECIPE:=nuclora}"
export OMP_NUM_THREADS
mkdir -p "$run"
for fold in $FOLDS; do
    nuclora cv "$data" --recipe "$RECIPE" --weights "$weights" --no-zero-shot --folds "$fold" -o "$run/$RECIPE" "$@" \
        >"$run/$RECIPE-fold-$fold.log" 2>&1 &
done
wait # for all; a fold that failed fails again below, and is seen
nuclora cv "$data" --recipe "$RECIPE" --weights "$weights" --no-zero-shot --folds "$(echo $FOLDS | tr ' ' ,)" \
    -o "$run/$RECIPE" "$@"
nuclora report "$run/$RECIPE"
python "$(dirname "$0")/collect.py" "$run/$RECIPE" >"$run/$RECIPE.json.tmp"
mv "$run/$RECIPE.json.tmp" "$run/$RECIPE.json"
