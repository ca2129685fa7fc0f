use super::names;

#[test]
fn server_names_match_whole_or_by_what_follows_a_star() {
    assert!(names("a.example", "a.example") && !names("a.example", "b.example"));
    assert!(names("*.example", "a.b.example") && !names("*.example", ".example") && !names("*.example", "example"));
    assert!(names("*", "") && names("*", "a"));
}
