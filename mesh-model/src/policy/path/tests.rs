use proptest::prelude::*;

use super::*;

fn of(target: &str) -> Result<String, BadPath> {
    NormalPath::of(target.as_bytes()).map(|path| path.as_str().to_owned())
}

#[test]
fn many_spellings_are_one_path() {
    for (target, normal) in [
        ("", "/"),
        ("/", "/"),
        ("?a=/../b", "/"),
        ("*", "*"),
        ("/admin", "/admin"),
        ("/admin/", "/admin/"),
        ("//admin", "/admin"),
        ("/%61dmin?x=%2F", "/admin"),
        ("/x/../admin", "/admin"),
        ("/x/%2e%2E/admin", "/admin"),
        ("/x/.%2e//./admin", "/admin"),
        ("/admin/.", "/admin/"),
        ("/admin/x/..", "/admin/"),
        ("/admin/..", "/"),
        ("/a//../b", "/b"),
        ("/a/...", "/a/..."),
        ("/a/..b/.c", "/a/..b/.c"),
        ("/%7euser/%e2%82%ac", "/~user/%E2%82%AC"),
        ("/caf\u{e9}", "/caf%C3%A9"),
        ("/a%252Fb", "/a%252Fb"),
        ("/a{b}|\"<>^`[]", "/a%7Bb%7D%7C%22%3C%3E%5E%60%5B%5D"),
        ("/a;b=c,d:@!$&'()*+", "/a;b=c,d:@!$&'()*+"),
        ("http://host", "/"),
        ("HTTPS://host:1/a/../b?c", "/b"),
        ("http://host?c", "/"),
        ("/http://host/", "/http:/host/"),
    ] {
        assert_eq!(of(target).as_deref(), Ok(normal), "{target}");
    }
}

#[test]
fn what_servers_read_in_different_ways_is_refused() {
    for (target, error) in [
        ("admin", BadPath::NotAbsolute),
        ("host:443", BadPath::NotAbsolute),
        ("ftp://host/a", BadPath::NotAbsolute),
        ("**", BadPath::NotAbsolute),
        ("/a%2Fb", BadPath::EscapedSlash),
        ("/a%2f..%2fadmin", BadPath::EscapedSlash),
        ("/a%5Cb", BadPath::Backslash),
        ("/a%5cb", BadPath::Backslash),
        ("/a\\..\\b", BadPath::Backslash),
        ("/a%00", BadPath::EscapedNul),
        ("/a\0", BadPath::Control(0)),
        ("/a b", BadPath::Control(b' ')),
        ("/a\x7f", BadPath::Control(0x7f)),
        ("/a%", BadPath::BrokenEscape),
        ("/a%4", BadPath::BrokenEscape),
        ("/a%4/1", BadPath::BrokenEscape),
        ("/a%+1", BadPath::BrokenEscape),
        ("/%u0061", BadPath::BrokenEscape),
        ("/a#b", BadPath::Fragment),
        ("/a?b#c", BadPath::Fragment),
        ("/..", BadPath::AboveRoot),
        ("/a/../../a", BadPath::AboveRoot),
        ("/%2e%2e/a", BadPath::AboveRoot),
        ("//../a", BadPath::AboveRoot),
    ] {
        assert_eq!(of(target), Err(error), "{target}");
    }
}

#[test]
fn what_is_normal_already_is_not_rewritten() {
    assert!(!NormalPath::of(b"/a/b?c").unwrap().changed());
    assert!(NormalPath::of(b"/a//b?c").unwrap().changed());
    assert_eq!(query_of(b"/a?b?c"), Some(&b"b?c"[..]));
    assert_eq!(query_of(b"/a"), None);
}

#[test]
fn pieces_that_no_path_has_are_known() {
    for piece in ["/a?b", "/a//b", "/%61", "/%e2", "/a%2Fb", "a b", "/../a", "%zz"] {
        assert!(never_in_normal_path(piece).is_some(), "{piece}");
    }
    for piece in ["/a", "%E2%82", "/caf\u{e9}", "%25", "/a/", "."] {
        assert_eq!(never_in_normal_path(piece), None, "{piece}");
    }
}

/// Paths of the bytes that matter, and any bytes.
fn target() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "/", "/", "/", ".", "..", "%2e", "%2E", "a", "b", "%", "%61", "%2F", "%5c", "%e2", "%25", "2e", "?", "*", "\\", "{", "\u{e9}",
        "%7", "E",
    ]);
    prop_oneof![
        4 => prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()).into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..40),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(|mut bytes| { bytes.insert(0, b'/'); bytes }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn normal_form_is_a_fixed_point_with_nothing_left_to_resolve(target in target()) {
        if let Ok(path) = NormalPath::of(&target) {
            let text = path.as_str();
            let again = NormalPath::of(text.as_bytes()).unwrap();
            prop_assert_eq!(again.as_str(), text);
            prop_assert!(!again.changed());
            prop_assert!(text == "*" || text.starts_with('/'), "{}", text);
            let framed = format!("{text}/");
            for resolved in ["//", "/./", "/../"] {
                prop_assert!(!framed.strip_suffix('/').unwrap_or_default().contains(resolved), "{} has {}", text, resolved);
            }
            prop_assert!(!text.ends_with("/.") && !text.ends_with("/.."), "{}", text);
            prop_assert!(text.bytes().all(|byte| (b'!'..=b'~').contains(&byte)));
            prop_assert!(!text.contains(['?', '#', '\\']));
            // A fully decoded path has the same segments: nothing becomes a slash or a dot segment later.
            let escapes: Vec<&str> = text.split('%').skip(1).map(|rest| &rest[..2]).collect();
            prop_assert!(escapes.iter().all(|escape| !["2E", "2F", "5C", "00"].contains(escape)), "{}", text);
        }
    }
}
