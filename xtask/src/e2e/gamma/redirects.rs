//! `RequestRedirect`: status and every part of `Location`.

use anyhow::Result;

use super::case::{Case, get, request};
use super::stage::{hold, parents, route_to};
use crate::e2e::bed::Bed;

/// Path and the filter's content; the rule is for the prefix.
const RULES: &[(&str, &str)] = &[
    ("/host", "hostname: example.org"),
    ("/host-301", "hostname: example.org, statusCode: 301"),
    ("/only-303", "statusCode: 303"),
    ("/only-307", "statusCode: 307"),
    ("/only-308", "statusCode: 308"),
    ("/https", "scheme: https"),
    ("/https-host", "scheme: https, hostname: example.org"),
    ("/https-443", "scheme: https, port: 443"),
    ("/https-80", "scheme: https, port: 80"),
    ("/https-8443", "scheme: https, port: 8443"),
    ("/http", "scheme: http"),
    ("/http-80", "scheme: http, port: 80"),
    ("/http-443", "scheme: http, port: 443"),
    ("/port-8083", "port: 8083"),
    ("/port-80", "port: 80"),
    ("/full", "path: {type: ReplaceFullPath, replaceFullPath: /there}"),
    ("/full-host", "hostname: example.org, path: {type: ReplaceFullPath, replaceFullPath: /there}, statusCode: 301"),
    ("/prefix", "path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}"),
    ("/prefix-slash", "path: {type: ReplacePrefixMatch, replacePrefixMatch: /new/}"),
    ("/prefix-root", "path: {type: ReplacePrefixMatch, replacePrefixMatch: /}"),
    ("/prefix-none", "path: {type: ReplacePrefixMatch, replacePrefixMatch: ''}"),
    ("/all", "scheme: https, hostname: example.org, port: 8443, statusCode: 308, path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}"),
];

/// Rules that a route may have.
const MOST: usize = 16;

/// As many routes as it takes, for a Service by the fields of their parent.
fn routes(name: &str, parent: &str) -> String {
    let rule = |(path, filter): &(&str, &str)| {
        format!("    - {{matches: [{{path: {{value: {path}}}}}], filters: [{{type: RequestRedirect, requestRedirect: {{{filter}}}}}]}}\n")
    };
    let route =
        |(i, rules): (usize, &[(&str, &str)])| route_to(&format!("{name}-{i}"), parent, &rules.iter().map(rule).collect::<String>());
    RULES.chunks(MOST).enumerate().map(route).collect()
}

fn cases() -> Vec<Case> {
    vec![
        get("another host; path and query stay", "redirects/host/a?b=c").redirected(302, "http://example.org/host/a?b=c"),
        get("another status", "redirects/host-301").redirected(301, "http://example.org/host-301"),
        get("303 alone", "redirects/only-303").redirected(303, "http://redirects/only-303"),
        get("307 alone", "redirects/only-307").redirected(307, "http://redirects/only-307"),
        get("308 alone", "redirects/only-308").redirected(308, "http://redirects/only-308"),
        request("a method makes no difference", "POST", "redirects/only-307").sending("x").redirected(307, "http://redirects/only-307"),
        get("another scheme has its own port", "redirects/https/a").redirected(302, "https://redirects/https/a"),
        get("another scheme and host", "redirects/https-host").redirected(302, "https://example.org/https-host"),
        get("the scheme's own port is left out", "redirects/https-443").redirected(302, "https://redirects/https-443"),
        get("another scheme's port is told", "redirects/https-80").redirected(302, "https://redirects:80/https-80"),
        get("a port is told", "redirects/https-8443").redirected(302, "https://redirects:8443/https-8443"),
        get("the same scheme", "redirects/http").redirected(302, "http://redirects/http"),
        get("the same scheme's own port is left out", "redirects/http-80").redirected(302, "http://redirects/http-80"),
        get("https' port for http is told", "redirects/http-443").redirected(302, "http://redirects:443/http-443"),
        get("a port alone", "redirects/port-8083").redirected(302, "http://redirects:8083/port-8083"),
        get("the port of the scheme that was asked by", "redirects/port-80").redirected(302, "http://redirects/port-80"),
        get("the whole path; the query stays", "redirects/full/a/b?c=d").redirected(302, "http://redirects/there?c=d"),
        get("the whole path and the host", "redirects/full-host/x").redirected(301, "http://example.org/there"),
        get("a prefix", "redirects/prefix/a?b").redirected(302, "http://redirects/new/a?b"),
        get("a prefix and nothing more", "redirects/prefix").redirected(302, "http://redirects/new"),
        get("a prefix by one with a slash", "redirects/prefix-slash/a").redirected(302, "http://redirects/new/a"),
        get("a prefix by the root", "redirects/prefix-root/a").redirected(302, "http://redirects/a"),
        get("a prefix by nothing", "redirects/prefix-none/a").redirected(302, "http://redirects/a"),
        get("a prefix by nothing, and nothing more", "redirects/prefix-none").redirected(302, "http://redirects/"),
        get("all of it", "redirects/all/y?z").redirected(308, "https://example.org:8443/x/y?z"),
        get("the host that was asked for", "redirects/https/a")
            .with("host", "shop.example")
            .redirected(302, "https://shop.example/https/a"),
        get("its port is not the Service's", "redirects/port-8083")
            .with("host", "shop.example:99")
            .redirected(302, "http://shop.example:8083/port-8083"),
        get("the port that was dialled", "redirects-any:8080/host").redirected(302, "http://example.org:8080/host"),
        get("the port that was dialled is for its scheme", "redirects-any:8080/https").redirected(302, "https://redirects-any/https"),
        get("the same scheme said has its own port", "redirects-any:8080/http").redirected(302, "http://redirects-any/http"),
        get("by HTTP/2", "redirects/host/a").http2().redirected(302, "http://example.org/host/a"),
    ]
}

pub fn redirects(bed: &mut Bed) -> Result<String> {
    let objects = parents(&["redirects", "redirects-any"])
        + &routes("redirects", "name: redirects, port: 80")
        + &routes("redirects-any", "name: redirects-any");
    hold(bed, &objects, &cases())
}
