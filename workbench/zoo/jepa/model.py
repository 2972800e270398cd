"""A deep linear encoder with one more layer, trained in latents or in the data, runs stacked.

    encoder E = W_L ... W_1 [latent, coordinate],  predictor or decoder V
    JEPA    1/2 E |V E x - sg(E) y|^2       sg: no gradient passes to the teacher
    MAE     1/2 E |V E x - y|^2

One loss with two targets T y: T = sg(E) or the identity (Littwin et al. 2024, arXiv 2407.03475).
The term in y alone has no gradient; it is part of the loss, so that the loss is an error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.zoo.jepa.closed import JEPA
from workbench.zoo.jepa.recipe import ALIGNED, Recipe, Setting

Parameters = dict[str, Tensor]


def start(recipe: Recipe) -> Parameters:
    """Initial layers [run, layer, out, in] and last layer [run, out, in], float64."""
    drawn = [_start_one(recipe, setting) for setting in recipe.settings]
    return {name: torch.stack([run[name] for run in drawn]) for name in drawn[0]}


def _start_one(recipe: Recipe, setting: Setting) -> Parameters:
    generator = torch.Generator().manual_seed(setting.seed)
    d = setting.task.d

    def rotation() -> Tensor:
        drawn = torch.randn(d, d, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(drawn)[0]

    def near(rotated: Tensor) -> Tensor:
        noise = torch.randn(d, d, generator=generator, dtype=torch.float64)
        return recipe.weight * (rotated + setting.jitter * noise)

    rotations = [rotation() for _ in range(recipe.depth)]
    last = rotation()
    if setting.kind == ALIGNED:
        # JEPA stays in the encoder's latents; MAE must come back to the data.
        whole = product(torch.stack(rotations))
        last = torch.eye(d, dtype=torch.float64) if recipe.method == JEPA else whole.mT
    return {"layers": torch.stack([near(r) for r in rotations]), "last": near(last)}


def product(layers: Tensor) -> Tensor:
    """Encoder [..., latent, coordinate] of layers [..., layer, out, in]."""
    encoder = layers[..., 0, :, :]
    for i in range(1, layers.shape[-3]):
        encoder = layers[..., i, :, :] @ encoder
    return encoder


def losses(parameters: Parameters, moments: tuple[Tensor, Tensor], method: str) -> Tensor:
    """Half the mean squared error of every run, [run].

    `moments` are E x x' (which is E y y' too) and E y x', [run, coordinate, coordinate].
    """
    xx, yx = moments
    encoder = product(parameters["layers"])
    target = encoder.detach() if method == JEPA else torch.eye(xx.shape[-1], dtype=xx.dtype)
    predicted = parameters["last"] @ encoder

    def trace(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((-2, -1))

    return (
        0.5 * trace(predicted @ xx, predicted)
        - trace(target @ yx, predicted)
        + 0.5 * trace(target @ xx, target)
    )
