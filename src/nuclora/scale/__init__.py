"""Work beyond one process: folds, rows of an ablation, images, and blocks of slides on a Ray cluster."""
