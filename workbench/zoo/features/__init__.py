"""The random-features laboratory: what attention with frozen random heads can learn.

Heads with random query-key matrices that are never trained, values that are fitted by ridge
regression (Fu et al. 2023, arXiv 2307.11353), beside a random-feature MLP of as many features and
beside the same two with infinitely many.

    task      a query, keys, and functions of them
    model     the features, and the kernels they tend to
    recipe    sizes, quick and default
    measure   ridge regression and test errors, as a table
    laws      what is read from the table, with mark and control
"""
