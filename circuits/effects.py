"""What a change of the model does to what it predicts, prompt by prompt.

A decoder is asked for its next-token loss, an encoder for how far its final hidden states turn.
Every prompt runs alone, so no padding enters; the cost is one forward pass per prompt and change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from workbench.errors import WorkbenchError
from workbench.guards import evaluating
from workbench.intervene import intervening
from workbench.interventions import Intervention
from workbench.models import Model
from workbench.prompts import as_prompts
from workbench.stream_edits import StreamEdit

Edit = Intervention | StreamEdit
Progress = Callable[[int, int, str], None]
LOSS, TURN = "nats per token", "1 - cosine"


def predicts(model: Model) -> bool:
    """Whether the model predicts the next token of a text, so that it has a loss."""
    sites = model.spec.of()
    causal = model.spec.main == "text" and all(site.causal for site in sites)
    return causal and not model.is_seq2seq and model.net.get_output_embeddings() is not None


def next_token_loss(model: Model, prompt: object) -> np.ndarray:
    """Loss of every prediction of one prompt, [position], nats: entry i is that of token i + 1.

    Under whatever interventions are open.  Raises `WorkbenchError` for a model that predicts no
    next token and for a prompt of a single token.
    """
    if not predicts(model):
        raise WorkbenchError(
            f"{model.name} predicts no next token, so it has no loss; compare its hidden states."
        )
    (encoded,) = model.encode(prompt)
    if len(encoded) < 2:
        raise WorkbenchError("a prompt of one token has no next token; give two or more.")
    with evaluating(model.net):
        log_p = model.logits(prompt)[:-1].float().log_softmax(-1)
    target = torch.as_tensor(encoded.ids, device=log_p.device)[1:, None]
    return -log_p.gather(1, target)[:, 0].cpu().numpy()


def final_states(model: Model, prompt: object) -> torch.Tensor:
    """Last hidden states of one prompt, [position, d_model], under whatever interventions are
    open."""
    (encoded,) = model.encode(prompt)
    ids = torch.as_tensor(encoded.ids, device=model.device)[None]
    with torch.no_grad(), evaluating(model.net):
        out = model.net(input_ids=ids, output_hidden_states=True, **encoded.extra)
    states = out.hidden_states
    if states is None:
        raise WorkbenchError(f"{model.name} returns no hidden states, so nothing can be compared.")
    return states[-1][0].float()


def effects(
    model: Model,
    prompts: object,
    edits: Mapping[str, Sequence[Edit]],
    *,
    first: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """What each of several changes does to every prompt, one row per change and prompt.

    `edits` maps a name to what is opened together.  Columns: `edit, prompt, name, base, edited,
    change, unit, n`.  Decoders: mean next-token loss of the whole model and of the changed one in
    nats per token, over the `n` predictions made from position `first` on; `change` is edited -
    base.  Encoders: base 0, edited = change = 1 - cosine between the final hidden states without
    and with the change, mean over the `n` tokens from `first` on.
    """
    texts = as_prompts(prompts)
    loss = predicts(model)
    measure = next_token_loss if loss else final_states
    rows, total = [], len(texts) * (len(edits) + 1)
    for number, prompt in enumerate(texts):
        base = measure(model, prompt)[first:]
        if not len(base):
            raise WorkbenchError(
                f"prompt {number} is over before position {first}; give longer prompts or a "
                "smaller first=."
            )
        for done, (edit, opened) in enumerate(edits.items(), 1):
            with intervening(model, opened):
                changed = measure(model, prompt)[first:]
            if loss:
                values = float(np.mean(base)), float(np.mean(changed))
            else:
                before, after = torch.as_tensor(base), torch.as_tensor(changed)
                turned = torch.nn.functional.cosine_similarity(before, after, dim=-1)
                values = 0.0, float(1 - turned.mean())
            rows.append((edit, number, prompt.name, *values, values[1] - values[0], len(base)))
            if progress:
                progress(number * (len(edits) + 1) + done + 1, total, edit)
    table = pd.DataFrame(rows, columns=["edit", "prompt", "name", "base", "edited", "change", "n"])
    return table.assign(unit=LOSS if loss else TURN)
