"""The laws of the laboratory: statistic, mark, control, and the law in words.

All risks are in nats above the oracle; without any context copy and recall cost about 2.4 nats.
"""

from __future__ import annotations

from collections.abc import Callable

from workbench.zoo.claims import OURS, Claim, Values, first, last
from workbench.zoo.deconstructed.laws import (
    FIXED,
    LARGE,
    XUE,
    Evidence,
    Run,
    context,
    largest_score,
    lesser_context,
    simple_layers,
    standard_layers,
    whole,
)
from workbench.zoo.deconstructed.recipe import HYBRID, STANDARD, UNIFORM, VARIANTS, setting_of
from workbench.zoo.trajectory import Mark

Reader = Callable[[Evidence], tuple[Values, Values]]
Statistic = Callable[[Run], float]
_FIXED = tuple(setting_of(UNIFORM, variant) for variant in FIXED)
_OTHERS = tuple(v for v in VARIANTS if v != "approximate")


def _uniform(variant: str) -> str:
    return setting_of(UNIFORM, variant)


def _hybrid(variant: str) -> str:
    return setting_of(HYBRID, variant)


_HYBRIDS = tuple(_hybrid(variant) for variant in VARIANTS)
_UNIFORMS = tuple(_uniform(variant) for variant in VARIANTS)
_MIXING = tuple(_hybrid(v) for v in VARIANTS if v != "mlp")
_MLP, _GATE = _uniform("mlp"), _uniform("non-approximate")


def _risk(rule: str) -> Statistic:
    return lambda run: last(run, f"excess_{rule}")


def _read(of: Statistic, settings: tuple[str, ...], controls: tuple[str, ...]) -> Reader:
    """One statistic of some settings, the same of others."""
    return lambda e: ([of(r) for r in e.of(*settings)], [of(r) for r in e.of(*controls)])


def _own(of: Statistic, settings: tuple[str, ...], null: Statistic) -> Reader:
    """One statistic of some settings against another of the same runs."""
    return lambda e: ([of(r) for r in e.of(*settings)], [null(r) for r in e.of(*settings)])


def _linear(variant: str) -> Reader:
    return lambda e: e.linear.get(variant, ([], []))


def _by_skipping(run: Run) -> float:
    return context(run, "skip") - context(run)


def _untrained(run: Run) -> float:
    return whole(run.isel(step=[0]))


def _smaller_scores(e: Evidence) -> tuple[Values, Values]:
    """Largest |score| of uniform runs over that of hybrid ones with the same start, after and
    before training."""
    pairs = [
        (largest_score(a), largest_score(b), largest_score(a.isel(step=[0])),
         largest_score(b.isel(step=[0])))
        for a, b in zip(e.of(_GATE), e.of(_hybrid("non-approximate")), strict=True)
    ]  # fmt: skip
    return [a / b for a, b, _, _ in pairs], [a / b for _, _, a, b in pairs]


# Sources of laws that fail nothing.
REPORTED = (OURS, LARGE)

CLAIMS: tuple[Claim[Evidence], ...] = (
    Claim("standard attention finds all three rules", XUE, "mean excess of the rules",
          Mark("<", 0.2), "untrained", "The network with attention in all layers comes near the "
          "oracle.", _own(whole, (STANDARD,), _untrained), (STANDARD,), whole=True),
    Claim("without mixing there is no context", XUE, "the smaller of copy and recall",
          Mark(">", 1.5), "standard", "An MLP in place of every attention layer learns "
          "nothing that stands at another position.", _read(lesser_context, (_MLP,), (STANDARD,)),
          (_MLP, STANDARD)),
    Claim("without mixing the chain is learned", XUE, "chain", Mark("<", 0.1), "untrained",
          "The statistics of pairs need no mixing: its perplexity is far below chance.",
          _own(_risk("chain"), (_MLP,), lambda r: first(r, "excess_chain")), (_MLP,)),
    Claim("fixed maps lose recall", XUE, "recall", Mark(">", 0.8), "the same variants, hybrid",
          "Maps that do not depend on the text, in all layers, cannot find what the text decides "
          "(LAMBADA: 1.3 and 1.4 % for 22.9 %).",
          _read(_risk("recall"), _FIXED, tuple(_hybrid(v) for v in FIXED)),
          (*_FIXED, *(_hybrid(v) for v in FIXED)), whole=True),
    Claim("fixed maps keep copying", OURS, "copy", Mark("<", 0.3), "no mixing",
          "What stands at a fixed place they find: the loss is of one ability, not of context.",
          _read(_risk("copy"), _FIXED, (_MLP,)), (*_FIXED, _MLP), whole=True),
    Claim("static queries and keys lose recall", XUE, "recall", Mark(">", 0.8), "hybrid",
          "Computed from token embeddings, a key does not say what stands before it (LAMBADA: "
          "3.3 %).", _read(_risk("recall"), (_uniform("static-emb-qk"),),
                           (_hybrid("static-emb-qk"),)),
          (_uniform("static-emb-qk"), _hybrid("static-emb-qk"))),
    Claim("one score per key loses context", XUE, "mean of copy and recall", Mark(">", 0.8),
          "hybrid", "The non-approximate variant in all layers has neither a place nor a content "
          "to look for (LAMBADA: 0 %).", _read(context, (_GATE,), (_hybrid("non-approximate"),)),
          (_GATE, _hybrid("non-approximate"))),
    Claim("the polynomial is the best uniform variant", XUE, "mean of copy and recall",
          Mark("<", 0.5), "all other variants, uniform", "The closest form loses least.",
          _read(context, (_uniform("approximate"),), tuple(map(_uniform, _OTHERS))), _UNIFORMS),
    Claim("hybrids that mix everywhere recover", XUE, "mean of copy and recall", Mark("<", 0.5),
          "uniform, all variants but the polynomial", "With standard attention in every other "
          "layer each variant has the abilities it lacks alone.",
          _read(context, _MIXING, tuple(map(_uniform, _OTHERS))), (*_MIXING, *_UNIFORMS)),
    Claim("mixing in every other layer brings context", XUE, "mean of copy and recall",
          Mark("<", 1.5), "no mixing", "Standard attention in half of the layers, and no mixing in "
          "the others: the weakest hybrid, far from no context.",
          _read(context, (_hybrid("mlp"),), (_MLP,)), (_hybrid("mlp"), _MLP)),
    Claim("skipping costs every hybrid its context", XUE, "mean of copy and recall, added by "
          "skipping the odd layers", Mark(">", 0.5), "no mixing, skipped", "What the simple layers "
          "write is needed, above all for recall, less for copying.",
          _read(_by_skipping, _HYBRIDS, (_MLP,)), (*_HYBRIDS, _MLP)),
    Claim("skipping costs standard attention as much", OURS, "mean of copy and recall, added by "
          "skipping the odd layers", Mark(">", 0.5), "no mixing, skipped", "So skipping says that "
          "layers trained together need one another, and nothing about simple layers.",
          _read(_by_skipping, (STANDARD,), (_MLP,)), (STANDARD, _MLP), whole=True),
    Claim("in hybrids the standard layers recall", OURS, "largest weight of a head on the answer",
          Mark(">", 0.5), "their simple layers", "The head that looks at the answer of a recall "
          "sits in a standard layer, where the other is a fixed map.",
          _own(standard_layers, tuple(_hybrid(v) for v in FIXED), simple_layers),
          tuple(_hybrid(v) for v in FIXED), whole=True),
    Claim("hybrids have smaller scores", LARGE, "largest |score|, uniform over hybrid, odd layers",
          Mark(">", 1.2), "untrained", "Of the non-approximate variant: standard layers keep the "
          "scores of the others down.", _smaller_scores,
          (_GATE, _hybrid("non-approximate"))),
    Claim("the polynomial in linear time", XUE, "difference of outputs over the largest",
          Mark("<", 1e-3), "softmax of the same q, k", "Running sums of features give what the "
          "trained heads give.", _linear("approximate"), (_uniform("approximate"),)),
    Claim("one score per key in linear time", XUE, "difference of outputs over the largest",
          Mark("<", 1e-3), "softmax of the same q, k", "Two running sums per head give what the "
          "trained heads give, and never see a later key.", _linear("non-approximate"), (_GATE,)),
)  # fmt: skip
