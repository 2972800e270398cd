"""The in-context linear regression laboratory: what one layer of softmax attention computes.

He et al. 2025 (arXiv 2503.12734): trained on prompts of labelled points with a new linear function
each, two heads or more become debiased gradient descent: one step from zero, with the mean label
taken off.  `task` draws prompts, `model` is the network, `closed` what the best simple predictors
reach, `reduced` the pattern family with its gradient flow, `measure` what is logged, `recipe` and
`training` the runs, `laws` what must come out.  `shipped` makes the folder that comes with the
workbench and `card` its card; `fates` and `phases` say where its runs end and what they pass.
"""
