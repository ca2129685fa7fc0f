use std::path::PathBuf;
use std::time::Duration;

use mesh_model::document::parse_documents;
use mesh_model::workload::PodNetworks;

use super::super::testing::{Answer, Issuer, jwks};
use super::*;

fn naming(url: &str) -> Arc<Snapshot> {
    naming_all(&[url.to_owned()])
}

fn naming_all(urls: &[String]) -> Arc<Snapshot> {
    let rules: String = urls.iter().map(|url| format!("  - {{issuer: a, jwksUri: '{url}', timeout: 60s}}\n")).collect();
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: a, namespace: shop}}\nspec:\n  jwtRules:\n{rules}"
    );
    let parsed = parse_documents(&PathBuf::from("a.yaml"), &text);
    Arc::new(Snapshot::build_on_node(parsed.documents.iter(), parsed.problems.clone(), &PodNetworks::default(), None))
}

/// Waits for a state of the only place, at most ten seconds.
async fn until(book: &mut watch::Receiver<Arc<Book>>, is: impl Fn(&super::super::Standing) -> bool) -> KeyLocation {
    let found = book.wait_for(|book| book.len() == 1 && book.values().all(&is));
    let book = tokio::time::timeout(Duration::from_secs(10), found).await.expect("in time").unwrap();
    book.keys().next().unwrap().clone()
}

#[tokio::test]
async fn the_book_follows_policies_and_issuers() {
    let issuer = Issuer::start().await;
    let metrics = Arc::new(Metrics::new());
    let (snapshots, followed) = watch::channel(naming(&format!("{}/one", issuer.https)));
    let (sender, mut book) = watch::channel(Arc::default());
    let terms = Terms::new(Duration::from_millis(20));
    let upkeep = Upkeep::new(terms, Fetcher::new(Some(issuer.roots.clone())), followed, sender, metrics.clone());
    let task = tokio::spawn(upkeep.run());
    until(&mut book, |standing| standing.set.is_none() && standing.failure.as_ref().is_some_and(|why| why.contains("404"))).await;
    issuer.set("/one", Answer::of(200, jwks(&["a"])));
    until(&mut book, |standing| standing.failure.is_none() && standing.set.as_ref().is_some_and(|set| set.keys == 1)).await;
    // Keys are rotated.
    issuer.set("/one", Answer::of(200, jwks(&["a", "b"])));
    until(&mut book, |standing| standing.set.as_ref().is_some_and(|set| set.keys == 2)).await;
    // The issuer is away.
    issuer.set("/one", Answer::of(503, ""));
    until(&mut book, |standing| standing.failure.is_some() && standing.set.as_ref().is_some_and(|set| set.keys == 2)).await;
    // The policy names another place.
    issuer.set("/two", Answer::of(200, jwks(&["a", "b", "c"])));
    snapshots.send_replace(naming(&format!("{}/two", issuer.https)));
    let place = until(&mut book, |standing| standing.set.as_ref().is_some_and(|set| set.keys == 3)).await;
    assert!(place.url().ends_with("/two"));
    assert!(metrics.jwks_fetches("ok") >= 3 && metrics.jwks_fetches("status") >= 2);
    drop(snapshots);
    assert!(task.await.unwrap().1.is_err());
}

#[tokio::test]
async fn fetches_that_nobody_waits_for_any_more_make_room() {
    let issuer = Issuer::start().await;
    let (snapshots, followed) = watch::channel(naming_all(&[]));
    let (sender, mut book) = watch::channel(Arc::default());
    let upkeep = Upkeep::new(Terms::new(Duration::from_secs(60)), Fetcher::new(None), followed, sender, Arc::new(Metrics::new()));
    let task = tokio::spawn(upkeep.run());
    for round in 0..2 * ROOM {
        let paths: Vec<String> = (0..ROOM).map(|number| format!("/slow-{round}-{number}")).collect();
        for path in &paths {
            issuer.set(path, Answer { delay: Duration::from_secs(60), ..Answer::of(200, "") });
        }
        snapshots.send_replace(naming_all(&paths.iter().map(|path| format!("{}{path}", issuer.http)).collect::<Vec<_>>()));
        let asked = async {
            while !issuer.asked().iter().any(|path| paths.contains(path)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), asked).await.expect("what is named anew is asked for");
    }
    issuer.set("/one", Answer::of(200, jwks(&["a"])));
    snapshots.send_replace(naming(&format!("{}/one", issuer.http)));
    until(&mut book, |standing| standing.set.is_some()).await;
    task.abort();
}
