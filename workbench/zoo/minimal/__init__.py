"""The minimal transformer laboratory: what classification still works without."""
