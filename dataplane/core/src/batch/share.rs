//! Shares of a sum.

/// Shares `total` out by `weights`, exactly: the shares add up to it. Where no weight is, all get the same. What is left after
/// rounding down goes to the largest fractions, the earlier one first (the largest remainder method of Hamilton).
#[must_use]
pub fn split(total: u64, weights: &[u64]) -> Vec<u64> {
    let even: Vec<u64>;
    let weights = if weights.iter().all(|weight| *weight == 0) {
        even = vec![1; weights.len()];
        &even
    } else {
        weights
    };
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    if sum == 0 {
        return Vec::new();
    }
    let exact =
        |weight: u64| (u128::from(total) * u128::from(weight) / sum, u128::from(total) * u128::from(weight) % sum);
    let mut shares: Vec<u64> =
        weights.iter().map(|weight| u64::try_from(exact(*weight).0).unwrap_or(u64::MAX)).collect();
    let left = total - shares.iter().sum::<u64>();
    let mut by_fraction: Vec<usize> = (0..weights.len()).collect();
    by_fraction.sort_by_key(|index| std::cmp::Reverse(exact(weights[*index]).1));
    for index in by_fraction.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
        shares[index] += 1;
    }
    shares
}
