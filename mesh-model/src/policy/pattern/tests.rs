use super::*;

fn matches(pattern: &str, text: &str) -> bool {
    pattern.parse::<StringMatch>().unwrap().matches(text)
}

#[test]
fn matches_exactly_by_prefix_suffix_and_presence() {
    assert!(matches("abc", "abc") && !matches("abc", "abcd") && !matches("abc", "ab"));
    assert!(matches("ab*", "ab") && matches("ab*", "abc") && !matches("ab*", "xab"));
    assert!(matches("*bc", "bc") && matches("*bc", "abc") && !matches("*bc", "bcx"));
    assert!(matches("*", "anything"));
}

#[test]
fn refuses_what_means_nothing() {
    assert_eq!("".parse::<StringMatch>(), Err(ParsePatternError::Empty));
    for text in ["a*b", "*a*", "**", "a**"] {
        assert!(matches!(text.parse::<StringMatch>(), Err(ParsePatternError::Star(_))), "{text}");
    }
}

#[test]
fn is_written_as_it_was_read() {
    for text in ["abc", "ab*", "*bc", "*"] {
        assert_eq!(text.parse::<StringMatch>().unwrap().to_string(), text);
    }
}
