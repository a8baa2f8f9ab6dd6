"""Names of KV blocks by content: equal hash, equal KV.

A block's hash chains its parent's, so it names the whole prefix up to and including the block:
hash_i = blake2b(hash_{i-1} | token ids of block i). The first parent is derived from the salt, so
that tenants with different salts share nothing. The router computes the same hashes.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

BlockHash = bytes
_DIGEST_BYTES = 16


def root_hash(salt: str = "") -> BlockHash:
    """Parent of every first block."""
    return hashlib.blake2b(b"baton-kv-1|" + salt.encode(), digest_size=_DIGEST_BYTES).digest()


def extend_hashes(
    hashes: list[BlockHash],
    token_ids: Sequence[int],
    block_size: int,
    salt: str = "",
) -> None:
    """Append to `hashes` until every full block of `token_ids` has one."""
    num_known, num_full = len(hashes), len(token_ids) // block_size
    if num_known >= num_full:
        return
    parent = hashes[-1] if hashes else root_hash(salt)
    new_ids = np.asarray(token_ids[num_known * block_size : num_full * block_size], dtype="<u4")
    new_bytes, block_bytes = new_ids.tobytes(), block_size * new_ids.itemsize
    for start in range(0, len(new_bytes), block_bytes):
        block = new_bytes[start : start + block_bytes]
        parent = hashlib.blake2b(parent + block, digest_size=_DIGEST_BYTES).digest()
        hashes.append(parent)


def prompt_digest(token_ids: Sequence[int]) -> bytes:
    """Digest of a whole prompt, so that two legs can tell that they hold the same one."""
    tokens = np.asarray(token_ids, dtype="<u4").tobytes()
    return hashlib.blake2b(tokens, digest_size=_DIGEST_BYTES).digest()
