"""Whatever runs a model more than once and compares the runs."""

from workbench.circuits.controls import untrained
from workbench.circuits.domains import Losses, loss_by_domain, prompt_losses
from workbench.circuits.massive import bias_constancy, massive_means
from workbench.circuits.mlp_attribution import (
    attribute,
    creating_layer_cosines,
    norm_against_lifetime,
    pca_through_mlp,
    residual_direction,
    sink_inputs,
    steer_creating_mlp,
)
from workbench.circuits.mlp_states import mlp_states
from workbench.circuits.sink_free import (
    proxy_pattern,
    proxy_sink_rate,
    repeated_token,
    sink_free_checks,
)
from workbench.circuits.visual import (
    ImageCentric,
    from_code,
    from_paper,
    image_centric_heads,
    masking_effect,
    redistribution,
)

__all__ = [
    "ImageCentric",
    "Losses",
    "attribute",
    "bias_constancy",
    "creating_layer_cosines",
    "from_code",
    "from_paper",
    "image_centric_heads",
    "loss_by_domain",
    "masking_effect",
    "massive_means",
    "mlp_states",
    "norm_against_lifetime",
    "pca_through_mlp",
    "prompt_losses",
    "proxy_pattern",
    "proxy_sink_rate",
    "redistribution",
    "repeated_token",
    "residual_direction",
    "sink_free_checks",
    "sink_inputs",
    "steer_creating_mlp",
    "untrained",
]
