"""The Bigram-Backcopy laboratory: when does an attention head turn dormant, and onto what?

One character or word chain, one rule on top of it: after a trigger symbol comes the symbol before
it.  A one-layer transformer learns the chain in its MLP and the rule in its head, and the head,
idle on every other symbol, learns to attend to the begin token and to empty that token's value
(Guo et al. 2024, arXiv 2410.13835).  `task` is the text with its exact oracle, `model` the network,
`recipe` what is trained, `measure` what is logged, `laws` what must come out, `reduced` the theory
in closed form, `export` a trained run as an ordinary model, `training` puts them together.
`shipped` and `card` are the laboratory as it comes with the workbench, `published` the curves of
the paper's authors.
"""
