use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn counts(sequence: &Sequence, len: usize, turns: usize) -> Vec<usize> {
    let mut counts = vec![0; len];
    for _ in 0..turns {
        counts[sequence.next().unwrap()] += 1;
    }
    counts
}

#[test]
fn nobody_has_a_turn() {
    assert_eq!(Sequence::new(&[]).next(), None);
    assert_eq!(Sequence::new(&[0, 0]).next(), None);
    assert_eq!(Sequence::new(&[3, 0]).next_of(|index| index == 1), None);
}

#[test]
fn turns_lie_apart() {
    let sequence = Sequence::new(&[5, 1, 1]);
    let turns: Vec<_> = (0..7).map(|_| sequence.next().unwrap()).collect();
    assert_eq!(turns, [0, 0, 1, 0, 2, 0, 0]);
}

#[test]
fn sums_beyond_32_bits() {
    let sequence = Sequence::new(&[u32::MAX, u32::MAX - 1, u32::MAX]);
    let counts = counts(&sequence, 3, 3000);
    assert!(counts.iter().all(|count| count.abs_diff(1000) <= 1), "{counts:?}");
}

#[test]
fn one_sequence_for_all_threads() {
    let sequence = Arc::new(Sequence::new(&[70, 30, 0]));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let sequence = sequence.clone();
            std::thread::spawn(move || counts(&sequence, 3, 125))
        })
        .collect();
    let mut sum = [0; 3];
    for thread in threads {
        sum.iter_mut().zip(thread.join().unwrap()).for_each(|(sum, count)| *sum += count);
    }
    assert_eq!(sum, [350, 150, 0]);
}

proptest! {
    #[test]
    fn exact_over_each_period(weights in prop::collection::vec(0u32..50, 1..8), periods in 1usize..4) {
        let sequence = Sequence::new(&weights);
        let sum: u32 = weights.iter().sum();
        for _ in 0..periods {
            let counts = counts(&sequence, weights.len(), sum as usize);
            prop_assert_eq!(counts, weights.iter().map(|weight| *weight as usize).collect::<Vec<_>>());
        }
    }

    #[test]
    fn shares_of_the_eligible(weights in prop::collection::vec(1u32..20, 2..8), before in 0usize..30, out in 0usize..8) {
        let sequence = Sequence::new(&weights);
        for _ in 0..before {
            sequence.next();
        }
        let out = out % weights.len();
        let sum: u32 = weights.iter().enumerate().filter(|(index, _)| *index != out).map(|(_, weight)| weight).sum();
        let mut counts = vec![0u32; weights.len()];
        for _ in 0..100 * sum {
            counts[sequence.next_of(|index| index != out).unwrap()] += 1;
        }
        for (index, weight) in weights.iter().enumerate() {
            let expected = if index == out { 0 } else { 100 * weight };
            let tolerance = if index == out { 0 } else { weights.len() as u32 };
            prop_assert!(counts[index].abs_diff(expected) <= tolerance, "{counts:?} {weights:?}");
        }
    }
}
