"""The associative memory laboratory: what a sum of outer products holds."""
