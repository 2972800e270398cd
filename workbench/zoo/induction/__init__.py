"""The induction laboratory: two layers form induction heads, one layer cannot."""
