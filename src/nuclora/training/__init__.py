"""Training: prompts and losses, one fold, all folds."""
