"""A trained run as an ordinary model: a GPT-2 whose MLPs are zero.

Smeared keys have no place there and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from workbench.errors import WorkbenchError
from workbench.zoo.backcopy import export, task
from workbench.zoo.induction.model import EPS
from workbench.zoo.induction.recipe import Recipe
from workbench.zoo.induction.task import Language


def gpt2(recipe: Recipe, weights: Mapping[str, np.ndarray], run: str) -> Any:
    """One run of a stack as a `GPT2LMHeadModel`; `weights` are the stack's, each [run, ...]."""
    from transformers import GPT2Config, GPT2LMHeadModel

    labels = [setting.run for setting in recipe.settings]
    if run not in labels:
        raise WorkbenchError(f"there is no run {run!r} in {recipe.name}; it has {labels}.")
    index = labels.index(run)
    if recipe.settings[index].smeared:
        raise WorkbenchError(
            f"run {run} has smeared keys, which GPT-2 has not; only runs without can be exported."
        )
    language = recipe.language
    config = GPT2Config(
        vocab_size=len(language.tokens),
        n_positions=language.length,
        n_embd=recipe.d_model,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        n_inner=1,
        layer_norm_epsilon=EPS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=language.begin,
        eos_token_id=None,
    )
    net = GPT2LMHeadModel(config)
    parts = {name: torch.from_numpy(np.array(weights[name][index])) for name in weights}
    net.load_state_dict(_state(parts, net.state_dict()))
    return net.eval()


def _state(
    parts: Mapping[str, torch.Tensor], empty: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """GPT-2's names; its `Conv1D` keeps weights as [in, out].  What we have not is zero."""
    state = {name: torch.zeros_like(value) for name, value in empty.items()}
    state |= {
        "transformer.wte.weight": parts["token"],
        "transformer.wpe.weight": parts["position"],
        "transformer.ln_f.weight": parts["final_gain"],
        "transformer.ln_f.bias": parts["final_bias"],
        "lm_head.weight": parts["unembed"],
    }
    for i in range(len(parts["q"])):
        state |= {
            f"transformer.h.{i}.attn.c_attn.weight": torch.cat([parts[n][i] for n in "qkv"]).T,
            f"transformer.h.{i}.attn.c_proj.weight": parts["o"][i].T,
            f"transformer.h.{i}.ln_1.weight": parts["gain"][i],
            f"transformer.h.{i}.ln_1.bias": parts["bias"][i],
        }
    return state


def tokenizer(language: Language) -> Any:
    """Words to ids, split at white space, `<s>` put in front."""
    return export.tokenizer(task.Task(language.chain, language.length))
