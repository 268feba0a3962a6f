//! What a model server remembers of prompts it has read: blocks of text, each known by all that stands before it, the least
//! recently used forgotten first. A prompt's share that is remembered need not be read again, so its first token comes sooner.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use serde_json::Value;

use super::request::{Ask, Protocol, content_text};

/// Bytes of a block: some sixteen tokens.
const BLOCK_BYTES: usize = 64;

/// The memory of one server.
pub struct PrefixCache {
    capacity: usize,
    /// When each block was last used.
    used: HashMap<u64, u64>,
    /// The blocks by that, oldest first.
    uses: BTreeMap<u64, u64>,
    now: u64,
}

/// Blocks of a call's prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Those that were remembered, from the start on.
    pub hits: u64,
    /// The others.
    pub misses: u64,
}

impl Found {
    /// The part that was remembered, 0 to 1.
    pub fn share(self) -> f64 {
        match self.hits + self.misses {
            0 => 0.0,
            all => self.hits as f64 / all as f64,
        }
    }
}

impl PrefixCache {
    /// Room for so many blocks.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, used: HashMap::new(), uses: BTreeMap::new(), now: 0 }
    }

    /// Looks a call's prompts up and remembers them.
    pub fn read(&mut self, ask: &Ask) -> Found {
        let mut found = Found::default();
        if self.capacity == 0 {
            return found;
        }
        for prompt in texts(ask) {
            let mut chain = 0;
            let mut known = true;
            let mut blocks = Vec::new();
            for block in prompt.as_bytes().chunks(BLOCK_BYTES) {
                let mut hasher = DefaultHasher::new();
                (chain, block).hash(&mut hasher);
                chain = hasher.finish();
                // A block that is not whole is read again each time.
                known &= block.len() == BLOCK_BYTES && self.used.contains_key(&chain);
                if known {
                    found.hits += 1;
                } else {
                    found.misses += 1;
                }
                if block.len() == BLOCK_BYTES {
                    blocks.push(chain);
                }
            }
            // The last block is the first to go: it is of no use without those before it.
            blocks.drain(..).rev().for_each(|block| self.remember(block));
        }
        found
    }

    fn remember(&mut self, block: u64) {
        self.now += 1;
        if let Some(before) = self.used.insert(block, self.now) {
            self.uses.remove(&before);
        }
        self.uses.insert(self.now, block);
        while self.used.len() > self.capacity
            && let Some((_, oldest)) = self.uses.pop_first()
        {
            self.used.remove(&oldest);
        }
    }
}

/// What the server has to read: the whole conversation, or each prompt.
fn texts(ask: &Ask) -> Vec<String> {
    match ask.protocol {
        Protocol::Chat => {
            let messages = ask.body["messages"].as_array().into_iter().flatten();
            let text = |message: &Value| {
                format!("{}\n{}\n", message["role"].as_str().unwrap_or_default(), content_text(&message["content"]))
            };
            vec![messages.map(text).collect()]
        }
        _ => ask.prompts.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ask(messages: &[&str]) -> Ask {
        let messages: Vec<Value> = messages.iter().map(|text| json!({"role": "user", "content": text})).collect();
        Ask::parse(Protocol::Chat, json!({"messages": messages}).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_conversation_that_goes_on_is_read_from_where_it_ended() {
        let mut cache = PrefixCache::new(1_000);
        let (first, second) = ("a".repeat(640), "b".repeat(640));
        // 646 bytes with the role: ten blocks and a rest.
        assert_eq!(cache.read(&ask(&[&first])), Found { hits: 0, misses: 11 });
        assert_eq!(cache.read(&ask(&[&first, &second])), Found { hits: 10, misses: 11 });
        assert_eq!(cache.read(&ask(&[&first, &second])), Found { hits: 20, misses: 1 });
        assert_eq!(cache.read(&ask(&[&second, &first])), Found { hits: 0, misses: 21 }, "other order, other prefixes");
    }

    #[test]
    fn the_least_recently_used_is_forgotten() {
        let mut cache = PrefixCache::new(20);
        let texts: Vec<String> = ["a", "b", "c"].iter().map(|letter| letter.repeat(640)).collect();
        cache.read(&ask(&[&texts[0]]));
        cache.read(&ask(&[&texts[1]]));
        for _ in 0..10 {
            assert_eq!(cache.read(&ask(&[&texts[0]])).hits, 10);
            assert!(cache.uses.len() <= 20);
        }
        cache.read(&ask(&[&texts[2]]));
        assert_eq!(cache.read(&ask(&[&texts[0]])).hits, 10, "used after the one that had to go");
        assert_eq!(cache.read(&ask(&[&texts[1]])).hits, 0);
        assert_eq!((cache.used.len(), cache.uses.len()), (20, 20));
    }

    #[test]
    fn without_room_nothing_is_counted() {
        assert_eq!(PrefixCache::new(0).read(&ask(&["a"])), Found::default());
        assert_eq!(Found::default().share(), 0.0);
    }
}
