"""Does the residual stream carry outliers: a first token of huge norm, a few massive activations?

`stream` 0 is the embedding, l + 1 the output of layer l.
"""

from __future__ import annotations

import pandas as pd
import xarray as xr
from scipy.special import ndtri

from workbench.errors import WorkbenchError
from workbench.probes.pooling import against_others
from workbench.probing import pooled
from workbench.stats import HeadStats


def residual_peak(stats: HeadStats) -> pd.DataFrame:
    """How far the norm of the first token stands above the others, per level of the stream.

    Columns: `stream, level`; `peak` = ||h_0|| - mean_{j>=1} ||h_j|| (L2 norm; Res_s of Guo et al.
    2024, arXiv 2410.13835) and `ratio` = ||h_0|| / mean_{j>=1} ||h_j||, means over prompts;
    `peak_sd`, `ratio_sd` their spread over prompts; `n` prompts; `null_ratio`, every other position
    in turn in the place of the first, averaged (for `peak` that mean is 0).  Needs `resid_norm`.
    """
    found = against_others(stats["resid_norm"], "query", 0)
    ones = xr.ones_like(found["prompt"], dtype="float64")
    peak, peak_sd = pooled(found["difference"], ones)
    ratio, ratio_sd = pooled(found["ratio"], ones)
    null, _ = pooled(found["null_ratio"], ones)
    streams = found["stream"].to_numpy()
    return pd.DataFrame(
        {
            "stream": streams,
            "level": [level_name(s) for s in streams],
            "peak": peak.to_numpy(),
            "peak_sd": peak_sd.to_numpy(),
            "ratio": ratio.to_numpy(),
            "ratio_sd": ratio_sd.to_numpy(),
            "n": found["ratio"].notnull().sum("prompt").to_numpy(),
            "null_ratio": null.to_numpy(),
        }
    )


def level_name(stream: int) -> str:
    """What a level of the stream is called in print.

    >>> level_name(0), level_name(3)
    ('embedding', 'after layer 2')
    """
    return "embedding" if stream == 0 else f"after layer {stream - 1}"


def massive_activations(
    stats: HeadStats, *, absolute: float = 100.0, ratio: float = 1000.0
) -> pd.DataFrame:
    """The largest activation of every level of the stream, and which rule of Sun et al. it meets.

    Sun et al. 2024 (arXiv 2402.17762, section 2) call |h| massive when |h| > 100 and |h| > 1000
    times the median |h| over tokens and dimensions.  The absolute rule depends on the model's
    scale, the ratio does not: both are reported.  One row per stream, of the prompt with the
    largest |h|: `stream, level, value` (signed), `median, ratio` (|value| / median), `null_ratio`,
    `dim, position, prompt, token`, `rule` ("absolute>100", "ratio>1000", "both", "none"; with the
    thresholds given), `n_fired` prompts of `n` in which both rules hold.  `null_ratio` is the
    expected maximum over median of as many independent normal numbers, Phi^-1(1 - 1/2M) /
    Phi^-1(3/4), M = tokens x width (width taken as heads x d_head of the widest layer; it enters
    through a logarithm).  Needs `resid_median, resid_top_value, resid_top_dim, resid_top_position`.
    """
    top = stats["resid_top_value"].astype("float64")
    largest = abs(top).isel(rank=0)
    median = stats["resid_median"].astype("float64")
    psi = largest / median.where(median > 0)
    both = ((largest > absolute) & (psi > ratio)).sum("prompt")
    rows = []
    for stream in top["stream"].to_numpy():
        size = largest.sel(stream=stream)
        n = int(size.notnull().sum())
        if n == 0:
            continue
        prompt = size["prompt"].to_numpy()[int(size.fillna(-1).argmax("prompt"))]
        at = {"prompt": prompt, "stream": stream}
        fired = (float(size.sel(prompt=prompt)) > absolute, float(psi.sel(at)) > ratio)
        where = {
            name: int(stats[f"resid_top_{name}"].sel(at).isel(rank=0))
            for name in ("dim", "position")
        }
        rows.append(
            {
                "stream": int(stream),
                "level": level_name(stream),
                "value": float(top.sel(at).isel(rank=0)),
                "median": float(median.sel(at)),
                "ratio": float(psi.sel(at)),
                "null_ratio": gaussian_ratio(stats, prompt),
                **where,
                "prompt": prompt,
                "token": _token(stats, prompt, where["position"]),
                "rule": rule_met(*fired, absolute, ratio),
                "n_fired": int(both.sel(stream=stream)),
                "n": n,
            }
        )
    if not rows:
        raise WorkbenchError(
            "the residual statistics hold no numbers; capture again with group 'residual'."
        )
    return pd.DataFrame(rows)


def rule_met(by_size: bool, by_ratio: bool, absolute: float, ratio: float) -> str:
    """Which of the two rules of Sun et al. holds, with its threshold."""
    if by_size and by_ratio:
        return "both"
    if by_size:
        return f"absolute>{absolute:g}"
    return f"ratio>{ratio:g}" if by_ratio else "none"


def gaussian_ratio(stats: HeadStats, prompt: int) -> float:
    """The null of max |h| / median |h|: Phi^-1(1 - 1/2M) / Phi^-1(3/4), M = tokens x width."""
    width = max(site.n_heads * site.d_head for site in stats.spec.of(stats.kind))
    n = int(stats.lengths.sel(prompt=prompt)) * width
    return float(ndtri(0.5 / n) / ndtri(0.25))


def _token(stats: HeadStats, prompt: int, position: int) -> str:
    tokens = stats.tokens
    found = tokens.loc[(tokens["prompt"] == prompt) & (tokens["position"] == position), "text"]
    return str(found.iloc[0]) if len(found) else ""
