use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn messages_are_counted_however_they_are_cut(lengths in proptest::collection::vec(0usize..50, 0..20), cuts in proptest::collection::vec(1usize..9, 1..200)) {
        let mut stream = Vec::new();
        for length in &lengths {
            stream.push(0);
            stream.extend_from_slice(&u32::try_from(*length).unwrap().to_be_bytes());
            stream.extend(std::iter::repeat_n(7, *length));
        }
        let mut messages = Messages::default();
        let mut rest = &stream[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (part, left) = rest.split_at((*cut).min(rest.len()));
            messages.feed(part);
            rest = left;
        }
        prop_assert_eq!(messages.count(), lengths.len() as u64);
    }
}
