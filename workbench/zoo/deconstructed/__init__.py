"""The deconstructed attention laboratory: which parts of attention a language model needs."""
