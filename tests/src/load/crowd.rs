//! Many clients at once.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::task::JoinSet;

use super::{Client, Identity, Mix, Transport, World};

/// Clients begin within this time.
const BEGIN_SPREAD: Duration = Duration::from_secs(2);

/// Who comes.
#[derive(Clone, Debug)]
pub struct Crowd {
    /// How many.
    pub clients: u32,
    /// Decides what each of them does.
    pub seed: u64,
    /// All of them talk this way; any if not given.
    pub transport: Option<Transport>,
    /// Number before that of the first session.
    pub sessions_after: u32,
    /// What their turns are like.
    pub mix: Mix,
}

/// Lets the clients begin. They end by themselves when the world does.
pub fn begin(crowd: &Crowd, world: &World) -> JoinSet<()> {
    let mut dice = StdRng::seed_from_u64(crowd.seed ^ 0x5e55_1015);
    let mut clients = JoinSet::new();
    let mut session = crowd.sessions_after;
    let mut device = 0;
    for id in 0..crowd.clients {
        // Some sessions have two devices.
        if id > 0 && device == 0 && dice.random_bool(0.25) {
            device = 1;
        } else {
            session += 1;
            device = 0;
        }
        let any = Transport::ALL[dice.random_range(0..Transport::ALL.len())];
        let who = Identity {
            id,
            transport: crowd.transport.unwrap_or(any),
            session: format!("s{session}").into(),
            device,
            mix: crowd.mix,
            rng: StdRng::seed_from_u64(dice.random()),
        };
        let wait = BEGIN_SPREAD.mul_f64(dice.random());
        let client = Client::new(who, world.clone());
        clients.spawn(async move {
            tokio::time::sleep(wait).await;
            client.run().await;
        });
    }
    clients
}
