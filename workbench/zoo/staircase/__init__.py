"""The staircase laboratory: linear attention learns one direction after the other.

Zhang, Singh, Latham & Saxe 2025 (arXiv 2501.16265): trained to regress in context, linear attention
with key and query merged into one matrix learns in one abrupt drop; with separate key and query it
goes from saddle to saddle, and at every plateau computes the regression on one more principal
component.  `task` holds the moments that decide the loss, `model` the two parametrisations,
`closed` the plateaus, entries and times, `measure` what is logged, `recipe` and `training` the
runs, `laws` and `claims` what must come out.
"""
