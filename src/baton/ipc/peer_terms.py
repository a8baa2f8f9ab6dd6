"""May two engines exchange KV blocks? Each says in its hello what its blocks look like. Pure.

Invariant: both ends of a connection come to the same answer, in the same words.
Elsewhere: the connection that ends for it (peer_connection.py), the layout (kvcache/layout.py).
"""

from typing import Final

from baton.messages.handover import EngineHello

_MODEL: Final = "--model-path and --quantization"
# What a field is called, and what sets it. Of several that one flag sets, the first that differs
# is told: the others follow from it.
_FIELDS: Final = (
    ("version", "the layout version", "version of Baton"),
    ("model_id", "the model", _MODEL),
    ("num_layers", "the number of layers", _MODEL),
    ("num_kv_heads", "the number of KV heads", _MODEL),
    ("head_dim", "the head dimension", _MODEL),
    ("dtype", "--kv-cache-dtype", "--kv-cache-dtype"),
    ("block_size", "--page-size", "--page-size"),
    ("tp_size", "--tp-size", "--tp-size"),
    ("tp_rank", "the tensor-parallel rank", "--tp-size"),
    ("form", "the form of blocks", "--kernel-backend"),
)


def find_difference(connecting: EngineHello, listening: EngineHello) -> str:
    """In what their layouts differ, by name, with both values and the mend; "" if in nothing."""
    one, other = connecting.layout, listening.layout
    if one == other:
        return ""
    told: dict[str, str] = {}
    for field, name, setting in _FIELDS:
        if getattr(one, field) != getattr(other, field):
            told.setdefault(setting, f"{name} is {_values(connecting, listening, field)}")
    return f"{'; '.join(told.values())}; start both with the same {' and '.join(told)}"


def _values(connecting: EngineHello, listening: EngineHello, field: str) -> str:
    return " and ".join(
        f"{_shown(getattr(hello.layout, field))} on the {hello.role or 'other'} worker"
        for hello in (listening, connecting)
    )


def _shown(value: int | str) -> str:
    return str(value) if value != "" else "nothing"
