"""The random-features laboratory: what attention with frozen random heads can learn."""
