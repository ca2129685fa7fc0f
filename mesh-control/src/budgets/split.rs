//! Max-min fair division, weighted: nobody gets more than he needs while another gets less than his share. Pure.

/// One who wants a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Claim {
    /// His share is in proportion to this, more than 0.
    pub(super) weight: u64,
    /// As much as he can use.
    pub(super) need: u64,
}

/// What each gets of `pool`, in the order of the claims; together no more than the pool. What is left when all needs are met is given away by
/// weight: it is for what nobody knows yet.
pub(super) fn split(pool: u64, claims: &[Claim]) -> Vec<u64> {
    let mut order: Vec<(usize, &Claim)> = claims.iter().enumerate().collect();
    // By need for each unit of weight: whoever needs less than his share leaves the rest to those that come after him.
    order.sort_by_key(|(_, claim)| (u128::from(claim.need) << 32) / u128::from(claim.weight.max(1)));
    let (mut left, mut weights) = (pool, claims.iter().map(|claim| claim.weight.max(1)).sum::<u64>());
    let all = weights;
    let mut given: Vec<u64> = vec![0; claims.len()];
    for (index, claim) in order {
        let share = part(left, claim.weight.max(1), weights);
        let gets = claim.need.min(share);
        weights -= claim.weight.max(1);
        left -= gets;
        if let Some(slot) = given.get_mut(index) {
            *slot = gets;
        }
    }
    for (slot, claim) in given.iter_mut().zip(claims) {
        *slot += part(left, claim.weight.max(1), all);
    }
    given
}

/// `of * weight / weights`, rounded down.
fn part(of: u64, weight: u64, weights: u64) -> u64 {
    u64::try_from(u128::from(of) * u128::from(weight) / u128::from(weights.max(1))).unwrap_or(of).min(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pool: u64, claims: &[(u64, u64)]) -> Vec<u64> {
        split(pool, &claims.iter().map(|&(weight, need)| Claim { weight, need }).collect::<Vec<_>>())
    }

    #[test]
    fn needs_are_met_before_more_than_a_share_is_given() {
        assert_eq!(of(100, &[(1, 20), (1, 500)]), [20, 80]);
        assert_eq!(of(100, &[(1, 500), (1, 500)]), [50, 50]);
        assert_eq!(of(90, &[(2, 500), (1, 500)]), [60, 30]);
        assert_eq!(of(100, &[(1, 10), (1, 30)]), [40, 60], "the rest by weight");
        assert_eq!(of(100, &[(1, 5), (1, 40), (1, 100)]), [5, 40, 55]);
        assert_eq!((of(0, &[(1, 5)]), of(7, &[])), (vec![0], vec![]));
    }
}
