//! Which of a host's addresses are endpoints.

use std::net::IpAddr;

use crate::limits::settings::ENDPOINTS_MAX;

/// The addresses of which each is one endpoint, in a fixed order. A server with two families of addresses is named by both:
/// then only its IPv4 ones count, since each endpoint would be there twice.
#[must_use]
pub fn endpoint_addresses(mut found: Vec<IpAddr>) -> Vec<IpAddr> {
    if found.iter().any(IpAddr::is_ipv4) {
        found.retain(IpAddr::is_ipv4);
    }
    found.sort_unstable();
    found.dedup();
    found.truncate(ENDPOINTS_MAX);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn each_address_is_one_endpoint_whatever_the_order_of_the_answer() {
        let found = endpoint_addresses(addresses(&["10.0.0.9", "10.0.0.10", "10.0.0.9"]));
        assert_eq!(found, addresses(&["10.0.0.9", "10.0.0.10"]));
        assert_eq!(endpoint_addresses(addresses(&["fd00::2", "fd00::1"])), addresses(&["fd00::1", "fd00::2"]));
        assert!(endpoint_addresses(Vec::new()).is_empty());
    }

    #[test]
    fn a_server_with_two_families_is_one_endpoint() {
        let found = endpoint_addresses(addresses(&["fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2"]));
        assert_eq!(found, addresses(&["10.0.0.1", "10.0.0.2"]));
    }

    #[test]
    fn there_are_no_more_than_the_bound() {
        let many = (0..1_000_u32).map(|i| IpAddr::from((0x0a00_0000 + i).to_be_bytes())).collect();
        assert_eq!(endpoint_addresses(many).len(), ENDPOINTS_MAX);
    }
}
