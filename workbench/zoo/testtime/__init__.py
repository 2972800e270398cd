"""The test-time regression laboratory: attention as a fit to the keys and values so far.

Keys and values are data, a query is a test point, and a layer of attention is a way to fit: softmax
a local constant, linear attention one step of a linear fit, the mesa layer the whole linear fit,
local linear attention a line around the query (Zuo et al. 2025, arXiv 2510.01450).  Nothing is
trained.  `task` draws maps from keys to values, `estimators` has the four patterns, `curves` their
errors, `injectivity` asks which patterns tell queries apart and `local` how near they look (Han et
al. 2024, arXiv 2412.06590), `claims` says what must come out.
"""
