//! What people look at when something is wrong.

use crate::cluster::Cluster;

/// Lines of each log.
const LINES: &str = "--tail=60";

/// Prints conditions, events and logs.
pub async fn print(cluster: &Cluster) {
    let gateway = cluster.arguments.gateway.as_str();
    let system = cluster.arguments.system.as_str();
    let selector = format!("--selector=app.kubernetes.io/instance={gateway}");
    let looks: [(&str, &[&str]); 6] = [
        ("the gateway", &["get", "cgw", gateway, "--output", "yaml"]),
        ("pods", &["get", "pods", "--output", "wide"]),
        ("events", &["events"]),
        ("logs of the pods", &["logs", &selector, "--prefix", "--all-containers", LINES]),
        ("the operator", &["get", "pods", "--namespace", system, "--output", "wide"]),
        ("logs of the operator", &["logs", "--namespace", system, "deployment/chatgateway-operator", LINES]),
    ];
    for (what, args) in looks {
        let said = cluster.kubectl(args).await.unwrap_or_else(|error| format!("{error:#}\n"));
        println!("\n---- {what}\n{said}");
    }
}
