"""A trained run as an ordinary model: the network is a GPT-2 without biases and with ReLU.

Pre-LN blocks, learned absolute positions, untied output: with its biases at zero, `GPT2LMHeadModel`
computes the same logits, and everything in the workbench runs on it.  ReLU attention and a null
sink have no place there and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench import tensorfile
from workbench.errors import WorkbenchError
from workbench.zoo.backcopy.model import EPS, Shape
from workbench.zoo.backcopy.recipe import Recipe
from workbench.zoo.backcopy.task import BEGIN, Task


def gpt2(recipe: Recipe, weights: Mapping[str, np.ndarray], run: str) -> Any:
    """One run of a stack as a `GPT2LMHeadModel`; `weights` are the stack's, each [run, ...].

    Parts that the run was trained without are zero maps in it.
    """
    labels = [setting.run for setting in recipe.settings]
    if run not in labels:
        raise WorkbenchError(f"there is no run {run!r} in {recipe.name}; it has {labels}.")
    index = labels.index(run)
    setting = recipe.settings[index]
    if recipe.attention != "softmax" or setting.null_start is not None:
        raise WorkbenchError(
            f"run {run} has {'a null sink' if setting.null_start is not None else 'ReLU attention'}"
            ", which GPT-2 has not; only softmax runs can be exported."
        )
    task = recipe.task()
    shape = Shape(len(task.tokens), recipe.length, recipe.layers, recipe.heads, recipe.d_model)
    state = _state(shape, {name: torch.from_numpy(weights[name][index]) for name in weights})
    for layer in setting.no_attention:
        state[f"transformer.h.{layer}.attn.c_proj.weight"].zero_()
    for layer in setting.no_mlp:
        state[f"transformer.h.{layer}.mlp.c_proj.weight"].zero_()
    net = _empty(shape, task)
    net.load_state_dict(state)
    return net.eval()


def _empty(shape: Shape, task: Task) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.length,
        n_embd=shape.d_model,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_inner=4 * shape.d_model,
        activation_function="relu",
        layer_norm_epsilon=EPS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=task.begin,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)


def _state(shape: Shape, one: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GPT-2's names; its `Conv1D` keeps weights as [in, out] and has biases, here zero."""
    state = {
        "transformer.wte.weight": one["token"],
        "transformer.wpe.weight": one["position"],
        "transformer.ln_f.weight": one["final_gain"],
        "transformer.ln_f.bias": one["final_bias"],
        "lm_head.weight": one["unembed"],
    }
    for i in range(shape.layers):
        qkv = torch.cat([one[name][i] for name in "qkv"])
        maps = {
            "attn.c_attn": qkv,
            "attn.c_proj": one["o"][i],
            "mlp.c_fc": one["up"][i],
            "mlp.c_proj": one["down"][i],
        }
        block = {f"{name}.weight": weight.T.clone() for name, weight in maps.items()}
        block |= {f"{name}.bias": torch.zeros(len(weight)) for name, weight in maps.items()}
        block |= {
            "ln_1.weight": one["attn_gain"][i],
            "ln_1.bias": one["attn_bias"][i],
            "ln_2.weight": one["mlp_gain"][i],
            "ln_2.bias": one["mlp_bias"][i],
        }
        state |= {f"transformer.h.{i}.{name}": value for name, value in block.items()}
    return state


def tokenizer(task: Task) -> Any:
    """Symbols to ids, `<s>` put in front: words split at white space, or characters."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    symbols = Tokenizer(models.WordLevel({t: i for i, t in enumerate(task.tokens)}, BEGIN))
    by_character = all(len(symbol) == 1 for symbol in task.chain.symbols)
    symbols.pre_tokenizer = (
        pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        if by_character
        else pre_tokenizers.WhitespaceSplit()
    )
    symbols.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, task.begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=symbols, bos_token=BEGIN, model_max_length=task.length
    )


def save(recipe: Recipe, weights: Mapping[str, np.ndarray], run: str, folder: Path | str) -> Path:
    """Write a run as a directory that `workbench.load` opens, with its tokenizer."""
    folder = Path(folder)
    if folder.exists():
        raise WorkbenchError(f"{folder} exists; name a new directory for the model.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.with_name(f".{folder.name}.tmp")
    tensorfile.remove_tree(scratch)
    try:
        gpt2(recipe, weights, run).save_pretrained(scratch)
        tokenizer(recipe.task()).save_pretrained(scratch)
        scratch.rename(folder)
    finally:
        tensorfile.remove_tree(scratch)
    return folder
