use super::*;

fn control() -> (LogControl, Arc<Mutex<Vec<String>>>) {
    let applied = Arc::new(Mutex::new(Vec::new()));
    let seen = applied.clone();
    let control = LogControl::new("info", move |filter| {
        seen.lock().push(filter.to_string());
        Ok(())
    });
    (control, applied)
}

#[test]
fn levels_and_targets_are_applied() {
    let (control, applied) = control();
    for filter in ["debug", "WARN", "off", "info,mesh_agent::tunnel=trace", "warn, h2=off"] {
        control.set(filter).unwrap();
        assert_eq!(control.current(), filter);
    }
    // The library's own targets are off unless the user names them.
    for (applied, wanted) in applied.lock().iter().zip(["debug", "warn", "off", "info", "warn"]) {
        let directives: Vec<&str> = applied.split(',').collect();
        assert!(directives.contains(&wanted) && directives.contains(&"kube_client=off"), "{applied}");
    }
    control.set("info,kube_client=debug").unwrap();
    let last = applied.lock().pop().unwrap();
    assert!(last.contains("kube_client=debug") && !last.contains("kube_client=off"), "{last}");
    assert_eq!(applied.lock().len(), 5);
}

#[test]
fn a_bad_filter_changes_nothing_and_names_the_levels() {
    let (control, applied) = control();
    for filter in ["", "loud", "mesh_agent", "info,loud", "mesh_agent=", "3", "a=b=c", "info,[span{=debug", &"debug,".repeat(500)] {
        let error = control.set(filter).unwrap_err().to_string();
        assert!(error.contains(LEVELS), "{filter}: {error}");
    }
    assert_eq!(control.current(), "info");
    assert!(applied.lock().is_empty());
}

#[test]
fn a_filter_that_is_refused_is_not_in_force() {
    let control = LogControl::new("info", |_| Err("gone".into()));
    assert!(matches!(control.set("debug"), Err(LogError::Gone(_))));
    assert_eq!(control.current(), "info");
}

#[test]
fn formats() {
    assert_eq!("json".parse::<LogFormat>().unwrap(), LogFormat::Json);
    assert_eq!("xml".parse::<LogFormat>().unwrap_err().to_string(), "log format \"xml\" is not one of: text, json");
}
