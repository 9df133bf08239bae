"""SAM image encoders, prompt encoder and mask decoder, their checkpoints and their low-rank adapters."""
