"""Training: `settings` (numbers), `batches` (what a step reads), `loop` (the step, again and again), `checkpoint` (what survives)."""
