use super::*;

impl Link {
    /// As if the address of this number had answered last.
    pub(crate) fn begin_with(&self, index: usize) {
        self.preferred.store(index, Ordering::Relaxed);
    }
}

#[test]
fn settings_are_judged() {
    let with = |addresses: &[&str]| {
        Link::new(LinkSettings::new(addresses.iter().map(|a| (*a).to_owned()).collect(), "r".into(), "t".into())).map(drop)
    };
    with(&["https://a:1", "https://[::1]:15012"]).unwrap();
    for bad in ["", "a:1", "http://a:1", "https://", "https://a b"] {
        assert!(matches!(with(&[bad]), Err(LinkError::Setting { .. })), "{bad}");
    }
    assert!(with(&[]).is_err());
}
