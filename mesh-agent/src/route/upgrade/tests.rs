use super::*;

#[test]
fn only_what_was_asked_for_is_switched_to() {
    let unasked = |status: u16, asked: Option<&'static str>, named: &[&str]| {
        let mut response = Response::builder().status(status);
        for name in named {
            response = response.header(UPGRADE, *name);
        }
        is_unasked(&response.body(()).unwrap(), asked.map(HeaderValue::from_static).as_ref())
    };
    for (asked, named) in [("websocket", "websocket"), ("websocket", "WebSocket"), ("a/1, B/2", "b/2"), ("a/1, b/2", "b/2, a/1")] {
        assert!(!unasked(101, Some(asked), &[named]), "{asked}: {named}");
    }
    assert!(unasked(101, None, &["websocket"]) && unasked(101, None, &[]));
    for named in [&[][..], &[""], &[","], &["h2c"], &["websocket, h2c"], &["websocket", "h2c"], &["websocket/13"]] {
        assert!(unasked(101, Some("websocket"), named), "{named:?}");
    }
    // It is told by its status alone.
    assert!(!unasked(200, None, &[]) && !unasked(426, None, &["websocket"]) && !unasked(200, Some("websocket"), &["h2c"]));
}
