//! Spreading keys over shards.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};

/// The shard of a key, below `shards`. The same key always has the same shard within a process.
pub fn shard_of(key: &impl Hash, shards: usize) -> usize {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
    // The remainder is below `shards`, which is a usize.
    usize::try_from(hash % shards as u64).unwrap_or(0)
}
