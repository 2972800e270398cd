"""The gradient-descent laboratory: attention that takes steps of gradient descent in context.

Weights of linear self-attention that make a layer one exact step (von Oswald et al. 2022, arXiv
2212.07677), a trained layer that finds them, softmax layers beside it, and a small causal
transformer beside the simple learners of Garg et al. 2022 (arXiv 2208.01066).  `task` draws
prompts, `construction` has the weights and the best step, `model` is the trained layer,
`transformer` the causal one, `learners` the simple learners, `measure` what is logged, `recipe` and
`training` the runs, `laws` and `claims` what must come out.
"""
