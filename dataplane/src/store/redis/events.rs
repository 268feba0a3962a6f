//! What is heard, on its way to the gateway. Nothing waits and nothing is lost for good: where there is no room, the
//! sessions concerned are noted, and told to be suspect later.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use chatgateway_core::log::SessionKey;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::{super::PeerEvent, link::Counters};

/// See the module.
pub(super) struct Events {
    to: mpsc::Sender<PeerEvent>,
    /// Sessions that are suspect without having been told so, and whether they are followed again.
    late: Mutex<HashMap<SessionKey, bool>>,
    waiting: Notify,
    counters: Arc<Counters>,
}

impl Events {
    pub(super) fn new(room: usize, counters: Arc<Counters>) -> (Arc<Self>, mpsc::Receiver<PeerEvent>) {
        let (to, from) = mpsc::channel(room);
        (Arc::new(Self { to, late: Mutex::default(), waiting: Notify::new(), counters }), from)
    }

    /// Tells it, or notes whom it concerned.
    pub(super) fn tell(&self, event: PeerEvent) {
        let mut late = self.late.lock();
        let event = match event {
            // Not before the `Suspect` that is still to come.
            PeerEvent::Following(session) if late.contains_key(&session) => {
                late.insert(session, true);
                return;
            }
            PeerEvent::News(session, _) if late.contains_key(&session) => return,
            PeerEvent::Suspect(sessions) => {
                for session in &sessions {
                    if let Some(followed) = late.get_mut(session) {
                        *followed = false;
                    }
                }
                PeerEvent::Suspect(sessions)
            }
            event => event,
        };
        let Err(mpsc::error::TrySendError::Full(event)) = self.to.try_send(event) else { return };
        self.counters.events_late.fetch_add(1, Relaxed);
        match event {
            PeerEvent::Following(session) => drop(late.insert(session, true)),
            PeerEvent::Suspect(sessions) => late.extend(sessions.into_iter().map(|session| (session, false))),
            // It was and is heard; only that something was said is lost.
            PeerEvent::News(session, _) => drop(late.insert(session, true)),
            PeerEvent::Notice(..) => return,
        }
        drop(late);
        self.waiting.notify_one();
    }

    /// Tells late what could not be told at once.
    pub(super) async fn catch_up(self: Arc<Self>) {
        loop {
            self.waiting.notified().await;
            while !self.late.lock().is_empty() {
                let Ok(room) = self.to.reserve().await else { return };
                // All under the lock, so that nothing that is told meanwhile comes in between.
                let mut late = self.late.lock();
                room.send(PeerEvent::Suspect(late.keys().cloned().collect()));
                late.retain(|session, followed| {
                    *followed && self.to.try_send(PeerEvent::Following(session.clone())).is_err()
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::News, *};

    fn key(name: &str) -> SessionKey {
        SessionKey::from_text(&format!("t/p/{name}")).unwrap()
    }

    #[tokio::test]
    async fn what_finds_no_room_is_suspect_later() {
        let (events, mut from) = Events::new(2, Arc::default());
        let catching_up = tokio::spawn(Arc::clone(&events).catch_up());
        let news = |name: &str| PeerEvent::News(key(name), News::Reread);
        for name in ["a", "b", "c", "d"] {
            events.tell(PeerEvent::Following(key(name)));
        }
        events.tell(news("a"));
        events.tell(PeerEvent::Suspect(vec![key("d")]));
        events.tell(news("c"));
        let mut heard: HashMap<SessionKey, Vec<&str>> = HashMap::new();
        let settled = |heard: &HashMap<SessionKey, Vec<&str>>| {
            let ends = |name: &str, end: &[&str]| heard.get(&key(name)).is_some_and(|all| all.ends_with(end));
            ends("a", &["suspect", "following"]) && ends("c", &["suspect", "following"]) && ends("d", &["suspect"])
        };
        while !settled(&heard) {
            let event = tokio::time::timeout(std::time::Duration::from_secs(5), from.recv()).await.unwrap().unwrap();
            match event {
                PeerEvent::Following(session) => heard.entry(session).or_default().push("following"),
                PeerEvent::News(session, _) => heard.entry(session).or_default().push("news"),
                PeerEvent::Suspect(all) => {
                    all.into_iter().for_each(|session| heard.entry(session).or_default().push("suspect"));
                }
                PeerEvent::Notice(..) => unreachable!(),
            }
        }
        assert_eq!(heard[&key("b")], ["following"]);
        assert!(!heard[&key("d")].contains(&"following"), "{heard:?}");
        assert!(events.late.lock().is_empty());
        catching_up.abort();
    }
}
