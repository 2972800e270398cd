"""An induction circuit written into the weights of a small GPT-2, and checkpoints without it.

The stream has a one-hot block for the token, one for the position, one for the token before and one
for the prediction.  Head L0H0 looks at the position before and writes its token; head L1H0 looks
where that is the query's own token and writes what stands there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

VOCAB, PLACES = 32, 64
TOKEN, PLACE = slice(0, VOCAB), slice(VOCAB, VOCAB + PLACES)
BEFORE = slice(PLACE.stop, PLACE.stop + VOCAB)
OUT = slice(BEFORE.stop, BEFORE.stop + VOCAB)
WIDTH, HEADS = OUT.stop, 2
D_HEAD = WIDTH // HEADS
NOTHING, LOOKS, COPIES = "nothing", "looks", "copies"


def network(stage: str, seed: int = 0, layers: int = 2) -> GPT2LMHeadModel:
    """Weights that do nothing, that look as an induction circuit does, or that copy as well.

    Small noise everywhere, so that no part is exactly zero.
    """
    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=layers, n_head=HEADS, n_embd=WIDTH, vocab_size=VOCAB, n_positions=PLACES,
        bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    net = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.003)
        body = net.transformer
        body.wte.weight[:, TOKEN] += torch.eye(VOCAB)
        body.wpe.weight[:, PLACE] += torch.eye(PLACES)
        net.lm_head.weight[:, OUT] += torch.eye(VOCAB)
        if stage != NOTHING:
            _look_back(body.h[0].attn)
        if stage != NOTHING and layers > 1:
            _match(body.h[1].attn, copies=stage == COPIES)
    return net


def _look_back(attention) -> None:
    """Query at t asks for position t - 1; the token there is written to the block BEFORE."""
    q, k, v = _parts(attention)
    q[PLACE, :PLACES] += torch.diag(torch.ones(PLACES - 1), -1)
    k[PLACE, :PLACES] += torch.eye(PLACES)
    v[TOKEN, :VOCAB] += torch.eye(VOCAB)
    # The norm of the block makes a one-hot entry about 9 times larger.
    attention.c_proj.weight[:VOCAB, BEFORE] += torch.eye(VOCAB) / 9


def _match(attention, *, copies: bool) -> None:
    """Query with a token asks for keys behind that token; what stands there goes to OUT."""
    q, k, v = _parts(attention)
    q[TOKEN, :VOCAB] += 2 * torch.eye(VOCAB)
    k[BEFORE, :VOCAB] += torch.eye(VOCAB)
    v[TOKEN, :VOCAB] += torch.eye(VOCAB)
    if copies:
        attention.c_proj.weight[:VOCAB, OUT] += torch.eye(VOCAB)


def _parts(attention) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of W_Q, W_K, W_V."""
    return attention.c_attn.weight.split(WIDTH, dim=1)


def save(folder: Path, stages: Mapping[int, str], layers: int = 2) -> Path:
    """Checkpoints of these steps as folders `step0`, `step100`, ..."""
    for step, stage in stages.items():
        network(stage, layers=layers).save_pretrained(folder / f"step{step}")
    return folder
