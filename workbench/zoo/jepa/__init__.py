"""The JEPA laboratory: which features deep linear networks learn first."""
