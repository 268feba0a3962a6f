//! Sessions and what is done with them.

use std::sync::Arc;

use chatgateway_core::log::*;
use chatgateway_dataplane::store::{Answer, Store, StoreError, redis::RedisStore};

use crate::settings::PATIENCE;

pub const TERMS: Terms = Terms { ttl_ms: 600_000, lease_ms: 60_000, keep_turns: 3 };
pub const POD: PodId = PodId(0xa);
pub const OTHER: PodId = PodId(0xb);

/// One session.
#[derive(Clone)]
pub struct Session {
    pub store: Arc<RedisStore>,
    pub key: SessionKey,
}

impl Session {
    pub fn new(store: &Arc<RedisStore>) -> Self {
        Self { store: store.clone(), key: key(&uuid::Uuid::new_v4().to_string()) }
    }

    pub async fn ask(&self, request: Request) -> Answer {
        tokio::time::timeout(PATIENCE, self.store.call(&self.key, request)).await.expect("every call ends")
    }

    pub async fn call(&self, request: Request) -> Result<Reply, StoreError> {
        self.ask(request).await.result
    }

    /// Asks until there is an answer.
    pub async fn insist(&self, request: Request) -> Reply {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            match self.call(request.clone()).await {
                Ok(reply) => return reply,
                Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    pub async fn own(&self, name: &str) -> Ownership {
        match self.insist(Request::Begin(begin(POD, name, self.key.as_str()))).await {
            Reply::Begin(BeginReply::Owner { own, .. }) => own,
            other => panic!("{other:?}"),
        }
    }

    pub async fn check(&self, own: &Ownership) -> CheckReply {
        match self.insist(check(own)).await {
            Reply::Check(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// Commits an entry as an owner does: what is in doubt is checked, and sent again if it is not there.
    pub async fn commit(&self, own: &Ownership, n: u64) {
        loop {
            if let Ok(Reply::Append(true)) = self.call(append(own, n)).await {
                return;
            }
            let found = self.check(own).await;
            assert!(found.mine);
            match found.end.unwrap().n {
                end if end == n => return,
                end => assert_eq!(end + 1, n, "nothing is lost"),
            }
        }
    }

    pub async fn finish(&self, own: &Ownership, follows: u64, len: u64) -> FinishReply {
        let kind = EntryKind::Done { finish_reason: "stop".into(), usage: Usage::default() };
        let entry = entry(own, follows + 1, kind);
        let follows = EntryId::new(own.epoch, follows);
        let finish = Finish { pod: POD, epoch: own.epoch, follows, len, entry, answer: "x".into(), terms: TERMS };
        match self.insist(Request::Finish(finish)).await {
            Reply::Finish(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// Ids of all entries, read in pages.
    pub async fn ids(&self) -> Vec<EntryId> {
        let (mut ids, mut after) = (Vec::new(), EntryId::ZERO);
        loop {
            let Reply::Read(page) = self.insist(Request::Read { after, count: 100 }).await else { panic!("a page") };
            let Some(last) = page.entries.last() else { return ids };
            after = last.id;
            ids.extend(page.entries.iter().map(|entry| entry.id));
        }
    }
}

pub fn key(name: &str) -> SessionKey {
    SessionKey::new("t", "p", &SessionId::parse(name).unwrap())
}

pub fn begin(pod: PodId, name: &str, text: &str) -> Begin {
    let body = Arc::new(TurnBody::new(text.into(), "".into()));
    let turn = TurnId::parse(name).unwrap();
    Begin { pod, nonce: Nonce(rand::random()), turn, seq: None, body, jump: 7, terms: TERMS }
}

pub fn entry(own: &Ownership, n: u64, kind: EntryKind) -> Arc<Entry> {
    Arc::new(Entry { id: EntryId::new(own.epoch, n), after: None, turn: own.turn.clone(), kind })
}

pub fn delta(own: &Ownership, n: u64) -> Arc<Entry> {
    entry(own, n, EntryKind::Delta { text: format!("piece {n}").into() })
}

pub fn append(own: &Ownership, n: u64) -> Request {
    Request::Append(delta(own, n))
}

pub fn check(own: &Ownership) -> Request {
    Request::Check(Check { pod: POD, epoch: own.epoch, terms: TERMS })
}

pub fn read() -> Request {
    Request::Read { after: EntryId::ZERO, count: 10 }
}
