"""The laws of the laboratory: statistic, mark, control, and the law in words."""

from __future__ import annotations

from collections.abc import Callable

from workbench.zoo.claims import OURS, Claim, Values, last
from workbench.zoo.induction import laws
from workbench.zoo.induction.laws import OLSSON, Evidence, Run
from workbench.zoo.trajectory import Mark

Statistic = Callable[[Run], float]
TWO, ONE, SMEARED, CONTROL = "two-layers", "one-layer", "smeared", "no-favourites"


def _against(of: Statistic, setting: str, *controls: str) -> Callable[[Evidence], tuple]:
    """One statistic of the runs of a setting against that of its controls."""
    return lambda e: ([of(run) for run in e.of(setting)], [of(run) for run in e.of(*controls)])


def _own(of: Statistic, null: Statistic) -> Callable[[Evidence], tuple]:
    """Two statistics of the runs with two layers."""
    return lambda e: ([of(run) for run in e.of(TWO)], [null(run) for run in e.of(TWO)])


def _last_prefix(run: Run) -> float:
    return float(laws.prefix(run)[-1])


def _last_previous(run: Run) -> float:
    return float(laws.previous(run)[-1])


def _together(run: Run) -> float:
    return laws.apart(run, laws.prefix(run), laws.icl(run))


def _chain_apart(run: Run) -> float:
    return laws.apart(run, laws.early_loss(run), laws.icl(run))


def _previous_first(run: Run) -> float:
    return laws.half_time(run, laws.previous(run)) / laws.half_time(run, laws.prefix(run))


def _matching_first(run: Run) -> float:
    matching = laws.best_pair(run, "matching")
    return laws.half_time(run, matching) / laws.half_time(run, laws.prefix(run))


def _prefix_before_chain(run: Run) -> float:
    return laws.half_time(run, laws.prefix(run)) / laws.half_time(run, laws.early_loss(run))


def _removal(e: Evidence) -> tuple[Values, Values]:
    return e.left("induction heads"), e.left("other head")


def _earlier_removal(e: Evidence) -> tuple[Values, Values]:
    return e.left("previous-token head"), e.left("other head")


def _half_times(e: Evidence, setting: str) -> list[float]:
    return [laws.half_time(run, laws.icl(run)) for run in e.of(setting)]


def _sooner(e: Evidence) -> tuple[Values, Values]:
    """Half-times with smeared keys by the earliest of two layers; of these, by the latest."""
    two, smeared = _half_times(e, TWO), _half_times(e, SMEARED)
    return [time / min(two) for time in smeared], [min(two) / max(two)]


def _plateaus(e: Evidence) -> tuple[Values, Values]:
    """With two layers over the first run of one layer: on the way, and at the end."""
    reference = e.of(ONE)[0]
    runs = e.of(TWO)
    return [laws.plateau(r, reference) for r in runs], [laws.ending(r, reference) for r in runs]


def _matched(of: Statistic, null: Statistic) -> Callable[[Evidence], tuple[Values, Values]]:
    """Of runs with two layers, against them untrained and those without favourites."""
    return lambda e: (
        [of(run) for run in e.of(TWO)],
        [*(null(run) for run in e.of(TWO)), *(of(run) for run in e.of(CONTROL))],
    )


CLAIMS: tuple[Claim[Evidence], ...] = (
    Claim("two layers learn from the context", OLSSON, "loss late minus early in the text, nats",
          Mark("<", -0.6), "one layer", "Two layers predict late tokens far better than early "
          "ones; one layer gains a little, from which words are frequent in a text.",
          _against(lambda r: last(r, "icl"), TWO, ONE), (TWO, ONE)),
    Claim("the loss falls with ln(position)", OLSSON, "d loss / d ln(position), nats",
          Mark("<", -0.3), "one layer", "Each doubling of the context lowers the loss of two "
          "layers.",
          _against(lambda r: last(r, "slope"), TWO, ONE), (TWO, ONE)),
    Claim("induction heads form", OLSSON, "prefix-matching score of the best head",
          Mark(">", 0.5), "one layer; two layers without favourites", "On repeated random words a "
          "head of the second layer looks at what followed the earlier copy.",
          _against(_last_prefix, TWO, ONE, CONTROL), (TWO, ONE, CONTROL)),
    Claim("they copy", OLSSON, "copying score of that head", Mark(">", 0.8), "untrained",
          "What it attends to becomes more likely: the eigenvalues of its OV circuit are positive.",
          _own(lambda r: float(laws.copying(r)[-1]), lambda r: float(laws.copying(r)[0])), (TWO,)),
    Claim("both in the same window", OLSSON, "half-times of ICL and of prefix score, later/earlier",
          Mark("<", 1.2), "half-times of ICL and of the chain", "The score of learning in context "
          "and the prefix-matching score move together; the chain was learned long before.",
          _own(_together, _chain_apart), (TWO,)),
    Claim("and the window is short", OLSSON, "largest fall of ICL within 20 % of the steps, nats",
          Mark(">", 0.4), "one layer", "A large part of what the context gives comes in a fifth of "
          "the training.", _against(laws.window_gain, TWO, ONE), (TWO, ONE), whole=True),
    Claim("a plateau before it", OURS, "excess loss by that of one layer, at half the half-time",
          Mark(">", 0.8), "at the end", "Until the window two layers are as good as one.",
          _plateaus, (TWO, ONE)),
    Claim("the first layer looks back", OLSSON, "previous-token score of the best head",
          Mark(">", 0.25), "one layer; two layers without favourites", "A head of the first layer "
          "attends to the token before, as the circuit of two heads needs.",
          _against(_last_previous, TWO, ONE, CONTROL), (TWO, ONE, CONTROL)),
    Claim("previous-token heads come first", OURS, "half-time of the previous-token score by that "
          "of the prefix score", Mark("<", 1.0), "prefix score by the chain", "Read by half-times "
          "this is not so here: a faint look back is enough for the second layer, and is sharpened "
          "afterwards.", _own(_previous_first, _prefix_before_chain), (TWO,), whole=True),
    Claim("the heads compose", OLSSON, "matching score of the best two heads", Mark(">", 0.6),
          "untrained; two layers without favourites", "Through the first layer's OV circuit the "
          "second layer's QK circuit matches a word with the word before the key.",
          _matched(lambda r: float(laws.best_pair(r, "matching")[-1]),
                   lambda r: float(laws.best_pair(r, "matching")[0])), (TWO, CONTROL)),
    Claim("on the plateau their circuit forms", OURS, "half-time of the matching score by that of "
          "the prefix score", Mark("<", 0.75), "previous-token score", "Long before any score of "
          "attention moves, the QK circuit through the first layer's OV already matches words: the "
          "plateau hides progress.", _own(_matching_first, _previous_first), (TWO,), whole=True),
    Claim("K-composition grows", OURS, "K-composition of the best two heads", Mark(">", 0.25),
          "untrained; two layers without favourites", "The norm of the composed circuit rises "
          "above that of random maps; the norm alone does not say what is composed.",
          _matched(lambda r: float(laws.best_pair(r, "composition")[-1]),
                   lambda r: float(laws.best_pair(r, "composition")[0])), (TWO, CONTROL)),
    Claim("without induction heads no ICL", OLSSON, "ICL left, share", Mark("<", 0.35),
          "the other head of the first layer removed", "Zeroing the heads that match prefixes "
          "takes away what the context gives.", _removal, (TWO,)),
    Claim("and less without the previous-token head", OURS, "ICL left, share",
          Mark("<", 0.7), "the other head of the first layer removed", "Zeroing the first layer's "
          "previous-token head takes away a good part of it, in some seeds all; where half is "
          "left, the other head looks back as well.", _earlier_removal, (TWO,)),
    Claim("smeared keys: one layer is enough", OLSSON, "loss late minus early in the text, nats",
          Mark("<", -0.6), "one layer", "Where every key knows the token before it, one layer "
          "learns from the context.", _against(lambda r: last(r, "icl"), SMEARED, ONE),
          (SMEARED, ONE)),
    Claim("and sooner", OLSSON, "half-time of ICL by the earliest of two layers", Mark("<", 0.7),
          "two layers among each other", "The window comes earlier, since no first layer has to "
          "be learned.", _sooner, (SMEARED, TWO), whole=True),
)  # fmt: skip
