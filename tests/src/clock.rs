//! One clock for several processes: what the simulator stamps into a token, the generator in another process can compare.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`, which all processes of a machine share.
pub fn monotonic_ns() -> u64 {
    // The call fails only for a clock that the kernel does not know; this one every Linux has.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|at| at.tv_sec().unsigned_abs() * 1_000_000_000 + at.tv_nsec().unsigned_abs())
        .unwrap_or_default()
}
