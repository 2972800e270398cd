"""The associative memory laboratory: what a sum of outer products holds.

Linear attention writes S = sum_i v_i k_i' and reads S q (Qiao 2025, arXiv 2508.08289).  Nothing is
trained: lists of items are drawn, stored by one of three rules and read back, beside closed forms.

    task      keys and values of unit length: random, orthogonal, as coherent as allowed
    rules     Hebb, delta, pseudo-inverse, and reading
    closed    the errors and capacities these must have
    recipe    sizes of the experiments, quick and default
    measure   the experiments, as tables
    laws      what is read from the tables, with mark and control
"""
