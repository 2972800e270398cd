"""The laws of the laboratory: statistic, mark, control, and the law in words."""

from __future__ import annotations

from collections.abc import Callable

from workbench.zoo.claims import OURS, Claim, Values, first, last
from workbench.zoo.scansnap.laws import (
    BEFORE,
    BEYOND,
    BROKEN,
    FLOW,
    NEAR,
    STABLE,
    TIAN,
    WIDE,
    Evidence,
    Run,
    by_rate,
    by_ratio,
    early_drift,
    exponent,
    grown,
    log_log_slope,
    off_identity,
    slowing,
    stable,
    steps_up,
    still_moving,
)
from workbench.zoo.trajectory import Mark

Reader = Callable[[Evidence], tuple[Values, Values]]
Statistic = Callable[[Run], float]
SAMPLED = tuple(stable())
REPORTED = (OURS, BEYOND)


def _read(of: Statistic, settings: tuple[str, ...], *controls: str) -> Reader:
    """One statistic of runs against the same of the controls."""
    return lambda e: ([of(run) for run in e.of(*settings)], [of(run) for run in e.of(*controls)])


def _own(of: Statistic, settings: tuple[str, ...], nulls: Statistic) -> Reader:
    """One statistic of runs against another of the same runs."""
    return lambda e: (
        [of(run) for run in e.of(*settings)], [nulls(run) for run in e.of(*settings)]
    )  # fmt: skip


def _last(name: str) -> Statistic:
    return lambda run: last(run, name)


def _first(name: str) -> Statistic:
    return lambda run: first(run, name)


def _mass(run: Run) -> float:
    """Common mass at the end by that at the start."""
    return last(run, "common_mass") / first(run, "common_mass")


def _first_power(run: Run) -> float:
    """Distance of the exponent of B from 2 over decoder times .25 to 1."""
    return abs(exponent(run, 0.25 / float(run["rate_y"]), 1 / float(run["rate_y"])) - 2)


def _last_power(run: Run) -> float:
    """Distance of the slope of B in ln ln t from 1/2 over the second half of the steps."""
    return abs(log_log_slope(run, int(run["step"].max()) // 2) - 0.5)


CLAIMS: tuple[Claim[Evidence], ...] = (
    Claim("distinct tokens gain", TIAN, "smallest logit of a distinct token, end",
          Mark(">", 0.002), "every token in every class", "Attention to every token that occurs in "
          "one class only has grown (Theorem 2).",
          _read(_last("z_lowest_distinct"), FLOW, "mixed"), (*FLOW, "mixed")),
    Claim("common tokens lose", TIAN, "largest logit of a common token, end", Mark("<", -0.1),
          "every token in every class", "Attention to every token that occurs in all classes has "
          "shrunk (Theorem 2).", _read(_last("z_highest_common"), FLOW, "mixed"), (*FLOW, "mixed")),
    Claim("attention leaves what tells nothing", TIAN, "common mass, end by start",
          Mark("<", 0.85), "every token in every class", "The scan: the mass moves from common "
          "tokens to distinct ones.", _read(_mass, FLOW, "mixed"), (*FLOW, "mixed")),
    Claim("the frequent ones first", TIAN, "top over rarest token, end by start", Mark(">", 1.5),
          "equal frequencies; Adam", "Among distinct tokens attention shifts to the frequent "
          "ones, the rarest fall out first. Under Adam they do not.",
          _read(grown, FLOW, "equal", "adam"), (*FLOW, "equal", "adam")),
    Claim("r(t) = r(0) exp(2 z)", TIAN, "|r / (r(0) exp(2 z)) - 1|, all steps", Mark("<", 0.05),
          "Adam", "The relative gain of the most frequent token over the rarest has the closed "
          "form of Theorem 3.", _read(off_identity, FLOW, "adam"), (*FLOW, "adam")),
    Claim("so it has on sampled texts", OURS, "|r / (r(0) exp(2 z)) - 1|, all steps",
          Mark("<", 0.1), "Adam", "With 128 texts of 128 tokens per step and momentum too, for "
          f"decoder rates up to {STABLE:g}.",
          _read(off_identity, SAMPLED, "adam"), (*SAMPLED, "adam")),
    Claim("every pair, near the start", OURS, f"largest drift of a pair while z < {NEAR:g}",
          Mark("<", 0.1), "the same runs at the end", "At first 1/w^2 differs by a constant "
          "between any two distinct tokens.", _own(early_drift, FLOW, _last("drift")), FLOW),
    Claim("every pair, to the end", BEYOND, "largest drift of a pair, end", Mark("<", 0.1),
          "Adam", "It does not stay so: a token nearly as frequent as the top one keeps up with "
          "it, for the decoder pulls attention back to where it was.",
          _read(_last("drift"), FLOW, "adam"), (*FLOW, "adam"), whole=True),
    Claim("the snap", TIAN, "rate of the entropy by its peak, end", Mark("<", 0.1),
          f"the same runs at step {BEFORE}", "Once the decoder has learned, attention nearly "
          "stops, far from one token taking all.",
          _own(slowing, FLOW, lambda run: slowing(run, BEFORE)), FLOW),
    Claim("a faster decoder, less sparse", TIAN, "entropy, smallest step to the next ratio",
          Mark(">", 0.005), "a decoder over the whole vocabulary", "The larger the rate of the "
          "decoder by that of attention, the less sparse attention ends, from every ratio to the "
          "next.", lambda e: (steps_up(e.of(*FLOW)), sorted(steps_up(e.of(*WIDE)))[:1]),
          (*FLOW, *WIDE), whole=True),
    Claim("not with outputs never asked for", OURS, "entropy, smallest step to the next ratio",
          Mark("<", -0.001), "next tokens alone", "With a decoder over the whole vocabulary the "
          "order is lost at small ratios.",
          lambda e: (sorted(steps_up(e.of(*WIDE)))[:1], sorted(steps_up(e.of(*FLOW)))[:1]),
          (*WIDE, *FLOW), whole=True),
    Claim("less sparse on sampled texts", TIAN, "entropy, smallest step to the next ratio",
          Mark(">", 0.005), f"decoder rates from {BROKEN:g} on", "As in the flow, for decoder "
          f"rates up to {STABLE:g}; with momentum .9 larger ones break the order.",
          lambda e: (by_ratio(e, 0, STABLE), sorted(by_ratio(e, BROKEN, 99))[:1]),
          tuple(stable(0, 99))),
    Claim("both faster, sparser", TIAN, "fall of the entropy, smallest to the next rate",
          Mark(">", 0.01), "a larger rate of the decoder alone", "At one ratio larger rates of "
          "both leave attention sparser after as many steps.",
          lambda e: (by_rate(e), [-step for step in by_ratio(e, 0, STABLE)]), SAMPLED),
    Claim("sampled attention freezes", TIAN, "share of the fall of common mass in the second half",
          Mark("<", 0.1), "without momentum", "After 50 of 100 steps attention no longer moves; "
          "without momentum, a tenth of the way, it does.",
          _read(still_moving, ("sampled-z1-r1",), "plain"), ("sampled-z1-r1", "plain")),
    Claim("the rarest gain on long texts", OURS, "smallest logit of a distinct token, end",
          Mark(">", 0.002), "texts of 128 tokens", "That the rarest distinct tokens lose in "
          "Syn-Small comes from its short texts: with 2048 tokens they gain.",
          _read(_last("z_lowest_distinct"), ("long",), "sampled-z1-r1"), ("long", "sampled-z1-r1")),
    Claim("growth begins as t^2", TIAN, "distance of the exponent of B from 2", Mark("<", 0.2),
          "after step 500", "B, the theory's time, begins as a power law (Theorem 4).",
          lambda e: ([_first_power(run) for run in e.of("fine")],
                     [abs(exponent(run, 500, 5000) - 2) for run in e.of("ratio-1")]),
          ("fine", "ratio-1"), whole=True),
    Claim("growth ends as log log t", BEYOND, "distance of the slope of B in ln ln t from 1/2",
          Mark("<", 0.2), "the first 100 steps", "Theorem 4 says that B ends as (ln ln t) / 2. Its "
          "slope still falls after 5000 steps, and is above that.",
          _own(_last_power, ("ratio-1",), lambda run: abs(log_log_slope(run, 1, 100) - 0.5)),
          ("ratio-1",), whole=True),
)  # fmt: skip
