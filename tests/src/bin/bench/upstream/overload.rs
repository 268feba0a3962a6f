//! Ten times as many turns as the model server can answer: what it can is to be answered all the same, and the others are to
//! hear at once that they are not.

use std::time::Duration;

use serde_json::json;

use super::{
    ground::{Lane, addresses, gateway, upstream},
    load::{Load, closed_loop, open_loop},
};
use crate::{
    report::{Bound, Row},
    setup::Setup,
};

/// Calls that the model server answers at once, 200 ms each.
const WORKERS: usize = 20;

/// Clients that keep it busy for the peak.
const CLIENTS: usize = 60;

/// Turns offered, by those that can be answered.
const OVERLOAD: f64 = 10.0;

/// The rows of this case.
pub async fn run(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let simulator = super::ground::batching_server("20");
    // What is answered is kept for the shortest time there is, so that what is measured is the overload's memory.
    let config = |model| {
        let mut config = gateway(upstream(&format!("http://{model}/v1"), WORKERS, "5s"));
        config["sessions"]["ttl"] = json!("16s");
        config
    };
    let lanes = Lane::start(setup, 1, &simulator, config).await?;
    let pods = addresses(&lanes);
    let gateway = &lanes[0].gateway;
    let peak = closed_loop(&pods, CLIENTS, setup.seconds(2, 5), setup.seconds(5, 20)).await?;
    // Before anything is measured the queue fills up, the clients connect, and the first sessions go.
    let (warm, length) = (setup.seconds(25, 25), setup.seconds(8, 60));
    let load = Load { rate: peak * OVERLOAD, seed: 7, warm, length, fresh: true, give_up: None };
    let early = async {
        tokio::time::sleep(warm + Duration::from_secs(1)).await;
        gateway.rss_bytes()
    };
    let late = async {
        tokio::time::sleep(warm + length).await;
        gateway.rss_bytes()
    };
    let (seen, early, late) = tokio::try_join!(open_loop(&pods, load), early, late)?;
    let goodput = seen.answered as f64 / length.as_secs_f64();
    let case = format!("{OVERLOAD:.0} times as many turns as can be answered, {} s", length.as_secs());
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    // Where nothing was refused there is no time that could hold.
    let none = seen.refused_us.is_empty();
    let refused_ms =
        |quantile| if none { f64::NAN } else { seen.refused_us.value_at_quantile(quantile) as f64 / 1_000.0 };
    Ok(vec![
        Row::against(format!("{case}: answered, against the peak"), goodput, "1/s", peak, goodput / peak)
            .bounds(Bound::AtLeast(0.9), Bound::AtLeast(0.95))
            .note(format!("{seen}; first token of the answered: {}", answered_ms(&seen))),
        Row::figure(format!("{case}: refusals, p99"), refused_ms(0.99), "ms").must(Bound::AtMost(10.0)).note(format!(
            "p50 {:.2}, highest {:.1}",
            refused_ms(0.5),
            refused_ms(1.0)
        )),
        Row::against(format!("{case}: RSS, end against start"), mib(late), "MiB", mib(early), mib(late) / mib(early))
            .must(Bound::AtMost(1.1)),
        Row::figure(format!("{case}: accepted and not answered"), seen.unanswered() as f64, ""),
    ])
}

/// Quantiles among those that were answered: the others are at the end of the histogram.
fn answered_ms(seen: &super::load::Seen) -> String {
    let share = seen.answered as f64 / seen.sent as f64;
    format!("p50 {:.0}, p99 {:.0} ms", seen.first_ms(0.5 * share), seen.first_ms(0.99 * share))
}
