"""The induction laboratory: how heads that copy from the context form, and all at once.

Olsson et al. 2022 (arXiv 2209.11895): early in training, in a short window, models of two layers
and more learn to use their context, and in the same window heads form that look for an earlier
copy of the current token and predict what followed it.  `task` draws texts in which every token
has a favourite successor, new in every text, with the exact next-token distribution; `model` is an
attention-only network of one or two layers, `measure` what is logged, `recipe` and `training` the
runs, `export` makes GPT-2s of them, `laws` and `claims` say what must come out, `shipped` opens
what comes with the workbench, checkpoint by checkpoint.
"""
