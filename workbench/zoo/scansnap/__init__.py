"""The scan-and-snap laboratory: how one layer of attention picks the tokens that tell.

Tian et al. 2023 (arXiv 2305.16380): attention leaves tokens that occur before every next token,
gains on those that occur before one only, the frequent ones first, and then nearly stops.  `task`
draws texts, `model` is the layer as two tables with its gradient in closed form, `measure` what is
logged, `recipe` and `training` the runs, `laws` and `claims` what must come out.
"""
