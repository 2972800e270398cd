"""Numbers the papers give for their models, to lay beside those of the same models run here.

None was run here: they need weights from the hub and, most of them, a large GPU.  `repeat` is the
command that measures the nearest statistic of ours; definitions differ in length and text.
"""

from __future__ import annotations

import pandas as pd

RATE = "Sink_1, epsilon 0.3, T 64"
LOSS = "perplexity, window of cached keys"
_COLUMNS = ("source", "model", "statistic", "value", "repeat")
GU = "Gu et al. 2024, arXiv 2410.10781"
XIAO = "Xiao et al. 2023, arXiv 2309.17453"
SUN = "Sun et al. 2024, arXiv 2402.17762"
GUO = "Guo et al. 2024, arXiv 2410.13835"
WONG = "Wong et al. 2025, arXiv 2512.22213"
_ROWS = (
    (GU, "openai-community/gpt2-xl", RATE, "77.0 %; random tokens 70.3 %; one repeated 62.3 %"),
    (GU, "mistralai/Mistral-7B-v0.1", RATE, "97.5 %; random tokens 75.2 %; one repeated 0 %"),
    (GU, "meta-llama/Llama-2-7b-hf", RATE, "92.5 %; random tokens 90.1 %; one repeated 0 %"),
    (GU, "meta-llama/Meta-Llama-3-8B", RATE, "99.0 %; random tokens 91.2 %; one repeated 0 %"),
    (XIAO, "meta-llama/Llama-2-13b-hf", LOSS, "5158 without first keys, 5.40 with four (1024)"),
    (XIAO, "tiiuae/falcon-7b", LOSS, "17.9 without first keys, 12.1 with one or more (2048)"),
    (XIAO, "mosaicml/mpt-7b", LOSS, "460 without first keys, 15.0 with one or more (2048)"),
    (XIAO, "EleutherAI/pythia-12b", LOSS, "21.6 without first keys, 12.0 with four (2048)"),
    (SUN, "meta-llama/Llama-2-7b-hf", "massive activations",
     "2622, 1547 where the median is 0.2; dimensions 1415 and 2533, layers 2 to 30"),
    (SUN, "meta-llama/Llama-2-13b-hf", "massive activations",
     "1264, 781 where the median is 0.4; dimensions 2100 and 4743"),
    (GUO, "meta-llama/Llama-3.1-8B", "norm of the first state after layer 24",
     "496, next token 37; 34 without the MLP of layer 0, 27 without that of layer 1"),
    (GUO, "meta-llama/Llama-2-7b-hf", "L16H25, Wikipedia against GitHub",
     "weight on the first key about 1 / spread; zeroing changes the loss by < .03 / up to .5"),
    (WONG, "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "secondary sinks in 300 generations",
     "270, all from layer 22, lifetimes 22 to 24; primary sink layers 4 to 46"),
    (WONG, "Qwen/Qwen3-4B-Base", "secondary sinks in 30 texts",
     "21, all (layer 16, lifetime 18); primary sink layers 6 to 34"),
)  # fmt: skip


def expected(model: str = "") -> pd.DataFrame:
    """Published values, all or those of the models that `model` may name; marked not run here."""
    rows = [
        (*row, f"workbench study sinks --model {row[1]} --prompts FILE")
        for row in _ROWS
        if not model or _stem(model) in _stem(row[1]) or _stem(row[1]) in _stem(model)
    ]
    return pd.DataFrame(rows, columns=list(_COLUMNS)).assign(here="not run here")


def _stem(name: str) -> str:
    return name.rpartition("/")[2].lower().removesuffix("-hf")
