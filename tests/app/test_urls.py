import itertools

import pytest

from workbench.app.urls import AtlasState, HeadState, SinksState, decode, encode, head_of, is_run_id
from workbench.errors import WorkbenchError

ATLAS = [
    AtlasState(*values)
    for values in itertools.product(
        ("demo", "a.b-c_1"),
        ("", "sink_mass"),
        ("", "role_mass_special"),
        ("", "V3H5"),
        (20, 0),
        (False, True),
    )
]
HEADS = [
    HeadState(*values)
    for values in itertools.product(
        ("demo",), ("L9H6", "X0H12"), (0, 7), (None, 0, 12), ("sqrt", "log"), (False, True)
    )
]


SINKS = [
    SinksState("demo", *values)
    for values in itertools.product(
        (0, 2), ("", "0", "strongest", "17"), ("sink_mass", "value_drain"), (None, 0),
        ("log", "linear"), (0.3, 0.05), (0.9, 0.95), (0.1, 0.0), ("", "other"),
    )
] + [
    SinksState("demo", sel="L1H2", op=op, scope=scope, logit=logit, mask=mask)
    for op, scope, logit, mask in itertools.product(
        ("zero", "drop", "null"), ("head", "layer", "all"), (0.0, -2.5), (False, True)
    )
]  # fmt: skip
EVERY = ATLAS + HEADS + SINKS


@pytest.mark.parametrize("state", EVERY, ids=encode)
def test_every_state_survives_the_address(state):
    assert decode(encode(state)) == state


def test_every_state_has_its_own_address():
    addresses = [encode(s) for s in EVERY]
    assert len(set(addresses)) == len(addresses)


def test_the_documented_addresses():
    assert encode(HeadState("demo", "L9H6", 3, 12, "log", True)) == (
        "/r/demo/head/L9H6?prompt=3&query=12&ramp=log&mask=1"
    )
    assert decode("/r/demo/atlas?metric=sink_mass&metric2=qk_distance&sel=L9H6") == AtlasState(
        "demo", "sink_mass", "qk_distance", "L9H6"
    )
    assert encode(AtlasState("demo")) == "/r/demo/atlas"
    assert encode(SinksState("demo", 3, "12", eps=0.25, mask=True)) == (
        "/r/demo/sinks?prompt=3&at=12&eps=0.25&mask=1"
    )
    assert encode(AtlasState("demo", mask=True)) == "/r/demo/atlas?mask=1"


def test_unknown_parameters_are_dropped():
    assert decode("/r/demo/atlas?utm=1&sel=L1H2") == AtlasState("demo", sel="L1H2")


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("/r/../atlas", "'..'"),
        ("/r/%2e%2e%2fetc/atlas", "../etc"),
        ("/r/.hidden/atlas", ".hidden"),
        ("/r/demo/head/9.6", "9.6"),
        ("/r/demo/head/L9H6x", "L9H6x"),
        ("/r/demo/head/L9H6?ramp=cube", "cube"),
        ("/r/demo/head/L9H6?prompt=-1", "-1"),
        ("/r/demo/head/L9H6?query=1e3", "1e3"),
        ("/r/demo/head/L9H6?prompt=٣", "prompt"),
        ("/r/demo/atlas?metric=a%27b", "a'b"),
        ("/r/demo/atlas?sel=%3Cb%3E", "<b>"),
        ("/elsewhere", "/elsewhere"),
        ("/r/demo/sinks?eps=1.5", "1.5"),
        ("/r/demo/sinks?cos=nan", "nan"),
        ("/r/demo/sinks?life=1e-3", "1e-3"),
        ("/r/demo/sinks?at=first+one", "first one"),
        ("/r/demo/sinks?op=explode", "explode"),
        ("/r/demo/sinks?other=..", "'..'"),
        ("/r/demo/sinks?logit=101", "101"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(url, named):
    with pytest.raises(WorkbenchError) as error:
        decode(url)
    assert named in str(error.value)


def test_labels_and_run_names():
    assert head_of("V3H5").kind == "vision"
    assert is_run_id("MiniLM-2026.1") and not is_run_id("a/b") and not is_run_id("a\n")
