"""The deconstructed attention laboratory: which parts of attention a language model needs.

Xue et al. 2025 (arXiv 2510.11602) take one principle of attention away at a time, in all layers or
in every other one.  `task` is a small language whose exact oracle tells three abilities apart,
`mixing` the ways of mixing positions, `model` the network, `recipe` and `training` the runs,
`measure` what is logged, `laws` and `claims` what must come out, `published` the paper's table.
"""
