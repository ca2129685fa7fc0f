use super::*;
use crate::ca::testing::moment;

const HOUR: Duration = Duration::from_secs(3600);

fn issuer() -> Validity {
    Validity { not_before: moment() - HOUR, not_after: moment() + 100 * HOUR }
}

#[test]
fn grants_within_bounds() {
    let lifetimes = Lifetimes { default: HOUR, max: 24 * HOUR };
    for (asked, granted) in
        [(0, HOUR), (-5, HOUR), (i64::MIN, HOUR), (60, HOUR / 60), (86_400, 24 * HOUR), (86_401, 24 * HOUR), (i64::MAX, 24 * HOUR)]
    {
        assert_eq!(lifetimes.grant(asked), granted, "{asked}");
    }
}

#[test]
fn begins_a_minute_ago_or_a_tenth_of_its_life() {
    let day = validity(moment(), 24 * HOUR, &issuer()).unwrap();
    assert_eq!(day, Validity { not_before: moment() - BACKDATE, not_after: moment() + 24 * HOUR });
    let short = validity(moment(), Duration::from_secs(20), &issuer()).unwrap();
    assert_eq!(short.not_before, moment() - Duration::from_secs(2));
    assert!(short.half() > moment(), "a client that renews at the middle does not renew at once");
}

#[test]
fn never_beyond_the_issuer() {
    let young = Validity { not_before: moment() - Duration::from_secs(1), not_after: moment() + HOUR };
    assert_eq!(validity(moment(), 24 * HOUR, &young), Some(young));
    let over = Validity { not_before: moment() - 2 * HOUR, not_after: moment() - HOUR };
    assert_eq!(validity(moment(), HOUR, &over), None);
    let to_come = Validity { not_before: moment() + HOUR, not_after: moment() + 2 * HOUR };
    assert_eq!(validity(moment(), 24 * HOUR, &to_come), None);
    assert_eq!(validity(moment(), Duration::MAX, &issuer()), None);
}

#[test]
fn whole_seconds() {
    let now = moment() + Duration::from_millis(999);
    let got = validity(now, HOUR, &issuer()).unwrap();
    assert_eq!(got, Validity { not_before: moment() - BACKDATE, not_after: moment() + HOUR });
}
