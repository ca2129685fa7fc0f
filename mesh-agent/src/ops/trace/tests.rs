use super::*;

const ID: &str = "0af7651916cd43dd8448eb211c80319c";

#[test]
fn a_claim_must_look_like_a_trace() {
    let upper = format!("00-{}-b7ad6b7169203331-01", ID.to_uppercase());
    for (text, good) in [
        (format!("00-{ID}-b7ad6b7169203331-01"), true),
        (format!("cc-{ID}-b7ad6b7169203331-01"), true),
        (format!("cc-{ID}-b7ad6b7169203331-01-more"), true),
        (format!("00-{ID}-b7ad6b7169203331-01-more"), false),
        (format!("ff-{ID}-b7ad6b7169203331-01"), false),
        (format!("00-{ID}"), false),
        (format!("00-{ID}-b7ad6b7169203331-01 "), false),
        (format!("00-{ID}-0000000000000000-01"), false),
        (format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)), false),
        (upper, false),
        (String::new(), false),
    ] {
        assert_eq!(trace_id(&text).as_deref(), good.then_some(ID), "{text}");
    }
}

#[test]
fn a_new_trace_is_one_that_others_take_up() {
    for (trace, span) in [(0, 0), (u128::MAX, u64::MAX), (7, 9)] {
        let (id, parent) = new(trace, span);
        assert_eq!(trace_id(&parent), Some(id));
    }
}
