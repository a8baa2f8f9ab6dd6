"""What an engine says in its hello about its KV blocks.

Elsewhere: the layout itself (kvcache/layout.py), who compares it (ipc/peer_terms.py).
"""

from baton.kvcache.layout import VERSION, KvLayout
from baton.messages.handover import LayoutTerms


def terms_of(layout: KvLayout) -> LayoutTerms:
    tp_rank, tp_size = layout.rank_split
    return LayoutTerms(
        version=VERSION,
        model_id=layout.model_id,
        dtype=layout.dtype,
        block_size=layout.block_size,
        num_layers=layout.num_layers,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        tp_rank=tp_rank,
        tp_size=tp_size,
        form=layout.form,
    )
