//! Keys of a session that are gone: evicted, deleted by hand.

use chatgateway_redis_server::{Options, RedisServer};
use serde_json::{Value, json};

use crate::support::{Follower, Gateways, Story, key, rotated, standalone};

struct Ground {
    redis: RedisServer,
    gateways: Gateways,
}

impl Ground {
    async fn start(tokens: u32) -> Self {
        let redis = RedisServer::start(Options::default()).unwrap();
        let gateways = Gateways::start(tokens, 2, &standalone(redis.endpoint())).await;
        Self { redis, gateways }
    }

    fn delete(&self, kinds: &[&str], session: &str) {
        let keys: Vec<_> = kinds.iter().map(|kind| key(kind, session)).collect();
        let mut command = vec!["DEL"];
        command.extend(keys.iter().map(String::as_str));
        assert_ne!(self.redis.cli(&command), "0", "nothing to remove");
    }

    /// An idle session with one turn, some of whose keys are gone.
    async fn idle_without(kinds: &[&str]) -> (Self, Story) {
        let ground = Self::start(30).await;
        let story = ground.gateways.is_taken(0, "s", "t").await;
        ground.delete(kinds, "s");
        (ground, story)
    }

    async fn get(&self, pod: usize, path: &str) -> (u16, Value) {
        let reply = self.gateways.http(pod).get(path).await.unwrap();
        (reply.status.as_u16(), reply.json().unwrap())
    }

    /// Whether a position is still good.
    async fn resumable(&self, pod: usize, position: &str) -> bool {
        let (status, body) = self.get(pod, &format!("/v1/sessions/s/events?after={position}&wait=1s")).await;
        assert!(status == 200 || body["code"] == "not_resumable", "{status} {body}");
        status == 200
    }

    /// The turn ids in the history.
    async fn history(&self, pod: usize) -> Vec<String> {
        let (status, body) = self.get(pod, "/v1/sessions/s").await;
        assert_eq!(status, 200, "{body}");
        body["turns"].as_array().unwrap().iter().map(|turn| turn["turn"].as_str().unwrap().to_owned()).collect()
    }

    /// A further turn works, and has this number.
    async fn goes_on_with(&self, seq: u64) -> Story {
        let next = self.gateways.is_taken(1, "s", "next").await;
        assert_eq!(next.turn.answer(), self.gateways.answer());
        let turn = next.turn.events.iter().find(|event| event.kind() == "turn").unwrap();
        assert_eq!(turn.0["seq"], json!(seq));
        next
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_log_an_idle_session_starts_a_new_one() {
    let (ground, story) = Ground::idle_without(&["log"]).await;
    assert!(!ground.resumable(0, story.turn.ids().last().unwrap()).await);
    assert_eq!(ground.history(1).await, ["t"]);
    ground.goes_on_with(2).await;
    assert_eq!(ground.history(0).await, ["t", "next"]);
    assert!(!ground.resumable(1, story.turn.ids().last().unwrap()).await);
    let again = Follower::resume(ground.gateways.addresses(), "s", "next").story().await;
    assert_eq!(again.turn.answer(), ground.gateways.answer());
    // The ended turn is still recognised: the model is asked for nothing twice.
    let repeat = json!({"turn": "t", "text": "hello"});
    let reply = ground.gateways.http(0).post("/v1/sessions/s/turns", &repeat).await.unwrap();
    assert_eq!(reply.json().unwrap()["text"], json!(ground.gateways.answer()));
    assert_eq!(ground.gateways.simulator.calls().count, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_root_an_idle_session_is_unknown() {
    let unknown = async |kinds: &[&str]| {
        let (ground, story) = Ground::idle_without(kinds).await;
        assert_eq!(ground.get(0, "/v1/sessions/s").await.0, 404);
        assert!(!ground.resumable(1, story.turn.ids().last().unwrap()).await);
        ground.goes_on_with(1).await;
        assert_eq!(ground.history(0).await, ["next"], "nothing of an earlier one of that name");
        assert!(!ground.resumable(0, story.turn.ids().last().unwrap()).await);
    };
    tokio::join!(unknown(&["ses"]), unknown(&["log", "ses", "dlg"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_history_an_idle_session_goes_on_without_it() {
    let (ground, story) = Ground::idle_without(&["dlg"]).await;
    assert!(ground.resumable(0, story.turn.ids().last().unwrap()).await);
    assert_eq!(ground.history(1).await, [""; 0]);
    ground.goes_on_with(2).await;
    assert_eq!(ground.history(0).await, ["next"]);
    let again = Follower::resume(ground.gateways.addresses(), "s", "t").story().await;
    assert_eq!(again.turn.answer(), ground.gateways.answer());
}

/// A turn that runs, read where it runs and elsewhere, while keys go.
async fn running_without(kinds: &[&str]) -> (Ground, Vec<Story>) {
    let ground = Ground::start(500).await;
    let addresses = ground.gateways.addresses();
    let here = Follower::send(addresses.clone(), "s", "t");
    here.has_seen(20).await;
    let elsewhere = Follower::resume(rotated(&addresses, 1), "s", "t");
    elsewhere.has_seen(30).await;
    ground.delete(kinds, "s");
    let stories = vec![here.story().await, elsewhere.story().await];
    (ground, stories)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_turn_is_told_again_in_a_new_log() {
    let (ground, stories) = running_without(&["log"]).await;
    for story in stories {
        ground.gateways.whole(&story).await;
        assert!(story.lost <= 1, "{} positions lost", story.lost);
        assert_eq!(story.count("reset"), 1);
    }
    assert_eq!(ground.gateways.simulator.calls().count, 1);
    ground.goes_on_with(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_turn_whose_session_is_gone_is_given_up_and_its_readers_are_told() {
    let told = async |kinds: &[&str]| {
        let (ground, stories) = running_without(kinds).await;
        for story in stories {
            assert_eq!(story.gone, 1, "without {kinds:?}");
        }
        ground.gateways.simulator.wait_for("the call to be given up", |calls| calls.in_flight == 0).await.unwrap();
        assert_eq!(ground.gateways.simulator.calls().cancelled, 1);
        // The client may send it again: a new session.
        let again = ground.gateways.is_taken(1, "s", "t").await;
        ground.gateways.whole(&again).await;
    };
    tokio::join!(told(&["ses"]), told(&["log", "ses", "dlg"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_turn_ends_without_the_history_before_it() {
    let ground = Ground::start(300).await;
    ground.gateways.is_taken(0, "s", "before").await;
    let follower = Follower::send(ground.gateways.addresses(), "s", "t");
    follower.has_seen(20).await;
    ground.delete(&["dlg"], "s");
    let story = follower.story().await;
    story.undisturbed();
    ground.gateways.whole(&story).await;
    assert_eq!(ground.history(0).await, ["t"]);
}
