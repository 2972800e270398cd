"""The minimal transformer laboratory: what classification still works without.

Bermeitinger et al. 2024 (arXiv 2410.13732): a transformer without MLP, with query and key matrices
collapsed into one, without value and output matrices, and with a symmetric similarity classifies as
well as the whole one, with a tenth of its parameters.  `task` has the images, `model` the variants,
`recipe` and `training` the runs, `measure` what is logged, `claims` what must come out.
"""
