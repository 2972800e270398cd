"""One head of attention without positions, as two tables, and their gradient in closed form.

    b ∝ counts exp(Z[n]),  h = b / ||b||,  logits = Y' h,  cross-entropy with the next token n

Z [class, token] are the attention logits of the class's query token, Y [token, output] the decoder;
both start at zero (Tian et al. 2023, arXiv 2305.16380, section 3, in their reparametrisation).  The
first outputs are the next tokens of the classes; further ones are never asked for.  With the
frequencies P(l | n) in place of counts this is the limit of long texts, and one row per class gives
the expected loss.  A dict of tensors [run, ...]; the runs of a stack mix nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from workbench.errors import WorkbenchError

Parameters = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Texts:
    """`counts` [run, text, token], float64, and `classes` [run, text]."""

    counts: Tensor
    classes: Tensor


def start(runs: int, classes: int, tokens: int, outputs: int) -> Parameters:
    """Zero tables for `runs` runs."""
    if outputs < classes:
        raise WorkbenchError(
            f"{outputs} outputs are too few for {classes} classes; give one per class or more."
        )
    return {
        "y": torch.zeros(runs, tokens, outputs, dtype=torch.float64),
        "z": torch.zeros(runs, classes, tokens, dtype=torch.float64),
    }


def attention(z: Tensor, texts: Texts) -> Tensor:
    """Attention to the tokens of each text, [run, text, token]; rows sum to 1."""
    asked = z.gather(1, texts.classes[..., None].expand(-1, -1, z.shape[-1]))
    # A token that does not occur has the score log 0.
    return (asked + texts.counts.log()).softmax(dim=-1)


def _logits(parameters: Parameters, texts: Texts) -> tuple[Tensor, Tensor]:
    """Attention [run, text, token] and logits [run, text, output]."""
    seen = attention(parameters["z"], texts)
    return seen, torch.nn.functional.normalize(seen, dim=-1) @ parameters["y"]


def losses(parameters: Parameters, texts: Texts) -> Tensor:
    """Mean cross-entropy of every run, nats, [run]."""
    _, logits = _logits(parameters, texts)
    right = logits.gather(-1, texts.classes[..., None])[..., 0]
    return (logits.logsumexp(dim=-1) - right).mean(dim=-1)


def descent(parameters: Parameters, texts: Texts) -> Parameters:
    """The negative gradient of the mean loss, by the formulas of the paper.

    With e the indicator of the next token and alpha the softmax of the logits, every text gives
    h (e - alpha)' to Y and diag(b) (1 - h h') Y (e - alpha) / ||b|| to the row of Z of its class.
    """
    seen, logits = _logits(parameters, texts)
    size = seen.norm(dim=-1, keepdim=True)
    h = seen / size
    error = one_hot(texts.classes, logits.shape[-1]) - logits.softmax(dim=-1)
    pull = error @ parameters["y"].mT
    across = pull - h * (h * pull).sum(dim=-1, keepdim=True)
    rows = one_hot(texts.classes, parameters["z"].shape[1]).to(h.dtype)
    count = texts.classes.shape[1]
    return {"y": h.mT @ error / count, "z": rows.mT @ (seen * across / size) / count}
