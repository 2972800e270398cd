"""`load`: open a model of any kind; `Model`: the one adapter everything else talks to.

A model is a hub id, a local directory, `zoo:NAME`, a transformers model object or a
transformer-lens model. Loading finds its attention sites (`Model.spec`); `Model.verify()` proves
that the tap sees them and that they matter, and is run once before the first capture.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workbench import zoo
from workbench.encode import Encoded, encode
from workbench.errors import CaptureError, WorkbenchError
from workbench.prompts import Prompt, as_prompts, repeated_random_tokens
from workbench.provenance import digest
from workbench.sites import find_spec
from workbench.spec import Spec
from workbench.tap import Editor, Listener, Tap
from workbench.verify import Verification, verify

_DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(eq=False)
class Model:
    """A network with its tokenizer and its `Spec`; make one with `workbench.load`."""

    # transformers' classes add attributes nn.Module does not declare (config, generate).
    net: Any
    spec: Spec
    name: str
    tokenizer: Any = None
    processor: Any = None
    revision: str = ""
    tap: Tap = field(init=False)
    verified: Verification | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.tap = Tap(self.net, self.spec)

    def __repr__(self) -> str:
        towers = ", ".join(
            f"{kind} {self.spec.n_layers(kind)} x {self.spec.n_heads(kind)}"
            for kind in self.spec.kinds
        )
        where = f"{self.dtype}, {self.backend}, on {self.device}"
        return f"Model({self.name}: {self.spec.family}, {towers}, {where})"

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def dtype(self) -> str:
        return str(next(self.net.parameters()).dtype).removeprefix("torch.")

    @property
    def backend(self) -> str:
        """The model's own attention implementation: it computes the outputs while statistics are
        taken."""
        name = getattr(self.net.config, "_attn_implementation_internal", None) or "eager"
        return name.removeprefix("workbench_")

    @property
    def is_seq2seq(self) -> bool:
        return bool(getattr(self.net.config, "is_encoder_decoder", False))

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokenizer's special tokens, or those the configuration names."""
        if self.tokenizer is not None:
            return frozenset(self.tokenizer.all_special_ids)
        config = getattr(self.net.config, "text_config", self.net.config)
        ids = [getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
        return frozenset(i for i in ids if isinstance(i, int))

    @property
    def image_token_id(self) -> int | None:
        value = getattr(self.net.config, "image_token_id", None)
        return value if isinstance(value, int) else None

    @property
    def tokenizer_digest(self) -> str:
        """Identifies the vocabulary and its order; empty without a tokenizer."""
        return "" if self.tokenizer is None else digest(sorted(self.tokenizer.get_vocab().items()))

    def open_tap(
        self,
        listener: Listener | None = None,
        editor: Editor | None = None,
        *,
        lse_of: str | None = None,
    ) -> AbstractContextManager[Any]:
        """Tap the network inside a block; see `workbench.tap.Tap.open`."""
        if any(site.tap == "returned" for site in self.spec.sites):
            raise CaptureError(
                f"{self.name} is a {self.spec.family} model, whose attention cannot be tapped, "
                "only read from the maps "
                f"it returns: interventions and statistics from q and k are not available for it."
            )
        return self.tap.open(listener, editor, lse_of=lse_of)

    def encode(self, prompts: object) -> list[Encoded]:
        """Tokenise prompts (see `workbench.prompts.as_prompts` for what counts as one)."""
        config = getattr(self.net.config, "text_config", self.net.config)
        return encode(
            as_prompts(prompts), self.tokenizer, self.processor, getattr(config, "vocab_size", None)
        )

    def accepts(self, argument: str) -> bool:
        """Whether the network's forward takes this keyword by name."""
        return argument in inspect.signature(self.net.forward).parameters

    def verify(self, inputs: dict[str, Any] | None = None) -> Verification:
        """Prove the adapter on a short input: sites, shapes, output projection, row sums, and that
        heads matter.

        Raises `CaptureError` naming the first thing that does not hold; never warns.
        """
        self.verified = verify(self, inputs)
        return self.verified

    def repeated_tokens(self, n: int, n_prompts: int, *, seed: int = 0) -> list[Prompt]:
        """Prompts of `n` random tokens, each sequence twice, from the whole vocabulary.

        Special tokens are left out, except that a begin token stands first where the tokenizer has
        one.  For words of a particular kind use `workbench.prompts.repeated_random_tokens`.
        """
        if n < 1 or n_prompts < 1:
            raise WorkbenchError(f"n={n}, n_prompts={n_prompts}: both must be 1 or more.")
        begin = getattr(self.tokenizer, "bos_token_id", None)
        if begin is None:
            begin = getattr(self.tokenizer, "cls_token_id", None)
        ids = self.plain_ids()
        return repeated_random_tokens(ids, n=n, n_prompts=n_prompts, seed=seed, begin=begin)

    def plain_ids(self) -> list[int]:
        """Ids of the vocabulary that are no special tokens."""
        config = getattr(self.net.config, "text_config", self.net.config)
        size = getattr(config, "vocab_size", None)
        if self.tokenizer is not None:
            size = min(size or len(self.tokenizer), len(self.tokenizer))
        if size is None:
            raise WorkbenchError(f"{self.name} has no vocabulary to draw repeated tokens from.")
        special = self.special_ids
        return [i for i in range(size) if i not in special]

    def logits(self, prompt: object) -> torch.Tensor:
        """Logits [position, vocab] of one prompt, under whatever interventions are open."""
        (encoded,) = self.encode(prompt)
        ids = torch.as_tensor(encoded.ids, device=self.device)[None]
        if self.is_seq2seq:
            start = torch.full((1, 1), self.net.config.decoder_start_token_id, device=self.device)
            inputs = {"input_ids": ids, "decoder_input_ids": start}
        else:
            inputs = {"input_ids": ids, **encoded.extra}
        with torch.no_grad():
            out = self.net(**inputs)
        if not hasattr(out, "logits"):
            raise WorkbenchError(
                f"{self.name} ({type(self.net).__name__}) has no output vocabulary and so no "
                "logits."
            )
        return out.logits[0]

    def generate(self, prompt: object, n: int) -> list[int]:
        """Ids of `n` greedily generated tokens (fewer if the model ends), under whatever
        interventions are open."""
        (encoded,) = self.encode(prompt)
        return generate_ids(self, encoded, n)[0].tolist()


def generate_ids(model: Model, encoded: Encoded, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy generation with a cache: (new ids, all decoder ids), both 1-D."""
    if (
        not hasattr(model.net, "generate")
        or not getattr(model.net, "can_generate", lambda: False)()
    ):
        raise WorkbenchError(
            f"{model.name} ({type(model.net).__name__}) cannot generate; capture it without "
            "generate=."
        )
    ids = torch.as_tensor(encoded.ids, device=model.device)[None]
    extra = {k: v.to(model.device) for k, v in encoded.extra.items()}
    extra.setdefault("attention_mask", torch.ones_like(ids))
    pad = getattr(model.net.generation_config, "pad_token_id", None)
    with torch.no_grad():
        out = model.net.generate(
            input_ids=ids,
            max_new_tokens=n,
            # What a checkpoint's generation settings may change must not: one greedy row, plain
            # ids.
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=False,
            use_cache=True,
            **extra,
            **({} if pad is not None else {"pad_token_id": 0}),
        )[0]
    start = 1 if model.is_seq2seq else ids.shape[1]
    return out[start:], out


def load(
    x: object,
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
) -> Model:
    """Open a model.

    `x` is a hub id, a local directory, `"zoo:NAME"` (or `"zoo:LABORATORY/RUN"`), a transformers
    model, or a transformer-lens `HookedTransformer` or `TransformerBridge`.  `revision` is a
    branch, tag or commit on the hub, or one of `workbench.zoo.revisions`.  `device`, `dtype` and
    `attention` change a model object that is given, in place.  `attention` is the backend that
    computes the outputs ("sdpa", "eager", "flash_attention_2", ...; default: the model's own
    choice).  Code from the hub runs only with `trust_remote_code=True`.  Raises `WorkbenchError` if
    it cannot be opened, `CaptureError` if it has no attention that can be read.
    """
    dtype = _dtype(dtype)
    if isinstance(x, Path):
        x = str(x)
    if isinstance(x, str):
        net, tokenizer, processor, revision = _from_disk_or_hub(
            x, dtype, revision, attention, trust_remote_code, tokenizer
        )
        name = x
    elif _is_lens(x):
        # transformer-lens takes over 20 s to import cold, so its adapter is only touched for its
        # models.
        from workbench.lens import load_lens

        return load_lens(x)
    elif isinstance(x, nn.Module) and hasattr(x, "config"):
        net, processor, name = x, None, getattr(x.config, "name_or_path", "") or type(x).__name__
        if attention is not None:
            net.set_attn_implementation(attention)  # type: ignore[operator]
        if dtype is not None:
            net = net.to(dtype)
    else:
        raise WorkbenchError(
            "load takes a hub id, a directory, 'zoo:NAME', a transformers model or a "
            "transformer-lens model; "
            f"got {type(x).__name__}."
        )
    net = net.to(_device(device)) if device or isinstance(x, str) else net
    # A model object stays in its own mode; a capture evaluates and puts the mode back.
    net = net.eval() if isinstance(x, str) else net
    return Model(net, find_spec(net), name, tokenizer, processor, revision or "")


def _is_lens(x: object) -> bool:
    return any(cls.__module__.startswith("transformer_lens") for cls in type(x).__mro__)


def _device(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise WorkbenchError(
            f"device {device!r} is not available here ({str(error).splitlines()[0]})."
        ) from None
    return device


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise WorkbenchError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}.")
    return getattr(torch, dtype)


def _from_disk_or_hub(
    x: str,
    dtype: torch.dtype | None,
    revision: str | None,
    attention: str | None,
    trust_remote_code: bool,
    tokenizer: Any,
) -> tuple[nn.Module, Any, Any, str]:
    import transformers

    if x.startswith("zoo:") and x.removeprefix("zoo:").split("/")[0] in zoo.laboratories():
        net, own = zoo.open_run(x.removeprefix("zoo:"), revision)
        if attention:
            net.set_attn_implementation(attention)
        return net.to(dtype) if dtype else net, tokenizer or own, None, revision or ""
    where = str(zoo.path(x.removeprefix("zoo:"))) if x.startswith("zoo:") else x
    if x.startswith("zoo:") and revision is not None:
        raise WorkbenchError(f"{x} has no revisions, so no {revision!r}; leave revision= out.")
    if (where.startswith((".", "/", "~")) or where.count("/") > 1) and not Path(
        where
    ).expanduser().is_dir():
        raise WorkbenchError(
            f"model directory {where!r} does not exist; give a directory, a hub id or zoo:NAME."
        )
    where = str(Path(where).expanduser()) if Path(where).expanduser().is_dir() else where
    shared: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(where, **shared)
        extra = {"attn_implementation": attention} if attention else {}
        net = _class_for(config, trust_remote_code).from_pretrained(
            where, config=config, dtype=dtype or "auto", **shared, **extra
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise WorkbenchError(f"model {x!r} could not be opened: {first}.") from error
    processor = None
    if hasattr(config, "vision_config") or hasattr(config, "num_mel_bins"):
        processor = _quietly(transformers.AutoProcessor, where, shared)
    elif not hasattr(config, "vocab_size"):
        processor = _quietly(transformers.AutoImageProcessor, where, shared)
    tokenizer = (
        tokenizer
        or getattr(processor, "tokenizer", None)
        or _with_words(_quietly(transformers.AutoTokenizer, where, shared))
    )
    found = getattr(net.config, "_commit_hash", None) or revision or ""
    return net, tokenizer, processor, found


def _class_for(config: Any, trust_remote_code: bool) -> Any:
    import transformers

    if not (trust_remote_code and getattr(config, "auto_map", None)):
        for architecture in getattr(config, "architectures", None) or ():
            if hasattr(transformers, architecture):
                return getattr(transformers, architecture)
        if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            return transformers.AutoModelForCausalLM
        return transformers.AutoModel
    return (
        transformers.AutoModelForCausalLM
        if "AutoModelForCausalLM" in config.auto_map
        else transformers.AutoModel
    )


def _with_words(tokenizer: Any) -> Any:
    """None for a tokenizer without a single word: what transformers makes of weights alone."""
    wordless = tokenizer is not None and len(tokenizer) <= len(tokenizer.all_special_ids)
    return None if wordless else tokenizer


def _quietly(auto: Any, where: str, shared: dict[str, Any]) -> Any:
    """A tokenizer or processor if the model comes with one; models of bare arrays have none."""
    try:
        return auto.from_pretrained(where, **shared)
    except (OSError, ValueError, KeyError, ImportError, TypeError):
        return None
