//! `URLRewrite`: what the server sees of host and path.

use anyhow::Result;

use super::case::{Case, Want, get};
use super::stage::{hold, parents, route};
use crate::e2e::bed::Bed;

/// Paths that are asked for, and what the server sees of each.
type Seen = &'static [(&'static str, &'static str)];

/// Prefix and what replaces it: the standard's table, each under a path of its own.
const PREFIXES: &[(&str, &str, Seen)] = &[
    ("/p1/foo", "/xyz", &[("/p1/foo/bar", "/xyz/bar"), ("/p1/foo", "/xyz"), ("/p1/foo/", "/xyz/")]),
    ("/p2/foo", "/xyz/", &[("/p2/foo/bar", "/xyz/bar")]),
    ("/p3/foo/", "/xyz", &[("/p3/foo/bar", "/xyz/bar")]),
    ("/p4/foo/", "/xyz/", &[("/p4/foo/bar", "/xyz/bar")]),
    ("/p5/foo", "''", &[("/p5/foo/bar", "/bar"), ("/p5/foo/", "/"), ("/p5/foo", "/")]),
    ("/p6/foo", "/", &[("/p6/foo/", "/"), ("/p6/foo", "/"), ("/p6/foo/bar?q=1", "/bar?q=1")]),
];

const OTHERS: &str = "
    - matches: [{path: {value: /host}}]
      filters: [{type: URLRewrite, urlRewrite: {hostname: inner.example}}]
      backendRefs: [{name: v2, port: 80}]
    - matches: [{path: {value: /full}}]
      filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /whole}}}]
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {type: Exact, value: /exact}}]
      filters: [{type: URLRewrite, urlRewrite: {hostname: inner.example, path: {type: ReplaceFullPath, replaceFullPath: /}}}]
      backendRefs: [{name: v3, port: 80}]
    - matches: [{path: {value: /both}}]
      filters:
        - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: rule}]}}
        - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /other}}}
      backendRefs: [{name: v1, port: 80}]
";

fn rules() -> String {
    let rule = |(prefix, by, _): &(&str, &str, _)| {
        format!(
            "    - matches: [{{path: {{value: {prefix}}}}}]
      filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: {by}}}}}}}]
      backendRefs: [{{name: v1, port: 80}}]\n"
        )
    };
    PREFIXES.iter().map(rule).collect::<String>() + OTHERS
}

fn cases() -> Vec<Case> {
    let rows = PREFIXES.iter().flat_map(|(_, _, rows)| rows.iter());
    let mut cases: Vec<Case> = rows
        .map(|(asked, seen)| get("a prefix is replaced", format!("rewrites{asked}")).by("v1").wants(Want::Target((*seen).to_owned())))
        .collect();
    cases.extend([
        get("another host; the path stays", "rewrites/host/a?b=c")
            .by("v2")
            .wants(Want::Host("inner.example"))
            .wants(Want::Target("/host/a?b=c".into())),
        get("another host by HTTP/2", "rewrites/host/a").http2().by("v2").wants(Want::Host("inner.example")),
        get("the whole path; the query stays", "rewrites/full/a/b?c=d")
            .by("v1")
            .wants(Want::Target("/whole?c=d".into()))
            .wants(Want::Host("rewrites")),
        get("host and path", "rewrites/exact?x").by("v3").wants(Want::Host("inner.example")).wants(Want::Target("/?x".into())),
        get("path and headers", "rewrites/both/a").by("v1").wants(Want::Target("/other/a".into())).wants(Want::Seen("x-set", "rule")),
    ]);
    cases
}

pub fn rewrites(bed: &mut Bed) -> Result<String> {
    hold(bed, &(parents(&["rewrites"]) + &route("rewrites", &rules())), &cases())
}
