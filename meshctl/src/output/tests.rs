use super::*;

#[test]
fn columns_are_as_wide_as_their_widest_cell() {
    let mut table = Table::new(["NODE", "READY", "WHAT"]);
    table.row(["n1".into(), Cell::coloured("yes", Colour::Green), "".into()]);
    table.row(["a-long-name".into(), Cell::coloured("no", Colour::Red), "waiting for: the CA".into()]);
    let expected = "\
NODE         READY  WHAT
n1           yes
a-long-name  no     waiting for: the CA
";
    assert_eq!(table.render(false), expected);
    assert!(table.render(true).contains("\u{1b}[31mno\u{1b}[0m     waiting"), "colours take no room: {:?}", table.render(true));
}

#[test]
fn text_of_a_cluster_moves_no_cursor() {
    let mut table = Table::new(["A"]);
    table.row(["\u{1b}[2Jx\ny".into()]);
    assert_eq!(table.render(false), "A\n [2Jx y\n");
}
