//! What clients see while Redis is in trouble, and afterwards: real gateways, real servers, real faults.
#![cfg(test)]

mod access;
mod cluster;
mod failover;
mod follower;
mod keys;
mod partition;
mod refusing;
mod restart;
mod support;
