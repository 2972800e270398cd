"""The JEPA laboratory: which features deep linear networks learn first.

Littwin et al. 2024 (arXiv 2407.03475): predicting the latents of a second view, with a teacher that
gets no gradient, learns features in the order of their regression coefficient; predicting the view
itself, as a masked autoencoder does, learns them in the order of their covariance; and the deeper
the encoder, the stronger the preference.  `task` holds the two views as moments, `model` the
network with its starts, `closed` the scalar equations with their times, `measure` what is logged,
`recipe` and `training` the runs, `laws` and `claims` what must come out.
"""
