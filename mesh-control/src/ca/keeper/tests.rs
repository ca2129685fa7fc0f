use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rcgen::KeyPair;

use super::*;
use crate::ca::authority::pem;
use crate::ca::testing::moment;
use crate::files;

fn kept(dir: &Path) -> CaSource {
    CaSource { files: None, state_dir: Some(dir.into()) }
}

#[test]
fn lives_in_memory_without_a_directory() {
    let [a, b] = [(), ()].map(|()| Keeper::open(&CaSource::default(), moment()).unwrap().current().roots().to_vec());
    assert_ne!(a, b);
}

#[test]
fn outlives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let first = Keeper::open(&kept(&path), moment()).unwrap();
    let (roots, intermediates) = (first.current().roots().to_vec(), first.current().intermediates().to_vec());
    let busy = Keeper::open(&kept(&path), moment()).unwrap_err().to_string();
    assert!(busy.contains("in use by another process"), "{busy}");
    drop(first);
    let second = Keeper::open(&kept(&path), moment()).unwrap();
    assert_eq!((second.current().roots(), second.current().intermediates()), (&*roots, &*intermediates));
    for name in ["root.pem", "intermediate.pem"] {
        assert_eq!(std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_lost_intermediate_is_made_anew_a_lost_root_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let roots = Keeper::open(&kept(dir.path()), moment()).unwrap().current().roots().to_vec();
    std::fs::remove_file(dir.path().join("intermediate.pem")).unwrap();
    assert_eq!(Keeper::open(&kept(dir.path()), moment()).unwrap().current().roots(), roots);
    std::fs::remove_file(dir.path().join("root.pem")).unwrap();
    let error = Keeper::open(&kept(dir.path()), moment()).unwrap_err().to_string();
    assert!(error.contains("root.pem: is missing"), "{error}");
    std::fs::write(dir.path().join("root.pem"), "garbage").unwrap();
    assert!(Keeper::open(&kept(dir.path()), moment()).is_err());
}

#[test]
fn renews_the_intermediate_at_half_life_under_the_same_root() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = Keeper::open(&kept(dir.path()), moment()).unwrap();
    let first = keeper.current();
    assert!(!keeper.maintain(moment() + Duration::from_secs(3600)).unwrap());
    let later = first.validity().half() + Duration::from_secs(1);
    assert!(keeper.maintain(later).unwrap());
    let second = keeper.current();
    assert_eq!(first.roots(), second.roots());
    assert_ne!(first.intermediates(), second.intermediates());
    assert!(!keeper.maintain(later).unwrap());
    drop(keeper);
    assert_eq!(Keeper::open(&kept(dir.path()), later).unwrap().current().intermediates(), second.intermediates());
}

#[test]
fn a_given_root_gets_an_intermediate_that_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(moment()).unwrap();
    let put = |name: &str, text: String| {
        let path = dir.path().join(name);
        files::write(&path, text.as_bytes(), files::SECRET).unwrap();
        path
    };
    let given =
        CaFiles { certificate: put("c", pem(&root.certificate)), key: put("k", root.key.serialize_pem()), roots: None, chain: None };
    let source = CaSource { files: Some(given), state_dir: Some(dir.path().join("state")) };
    let open = || {
        let current = Keeper::open(&source, moment()).unwrap().current();
        (current.roots().to_vec(), current.intermediates().to_vec())
    };
    let first = open();
    assert_eq!((first.0.as_slice(), first.1.len()), ([root.certificate].as_slice(), 1));
    assert_eq!(open(), first);
    // Another root: the intermediate that was kept is of no use.
    let other = make_root(moment()).unwrap();
    put("c", pem(&other.certificate));
    put("k", other.key.serialize_pem());
    assert_ne!(open().1, first.1);
}

fn given(signer: &Signer, roots: &[&Signer]) -> Given {
    let key = KeyPair::from_pem(&signer.key.serialize_pem()).unwrap();
    Given {
        signer: Signer { certificate: signer.certificate.clone(), key },
        chain: Vec::new(),
        roots: roots.iter().map(|root| root.certificate.clone()).collect(),
        may_have_intermediate: true,
    }
}

#[test]
fn a_root_is_changed_in_steps_and_no_step_out_of_order() {
    let now = SystemTime::now();
    let (old, new) = (make_root(now).unwrap(), make_root(now).unwrap());
    let keeper = |signer: &Signer, roots: &[&Signer]| Keeper::given(given(signer, roots), now).unwrap();
    let present = keeper(&old, &[&old]);
    let judged = |next: Keeper, age: Duration| present.may_give_way_to(&next, age, now);
    // All at once: nobody would trust anybody.
    assert_eq!(judged(keeper(&new, &[&new]), PROJECTION), Err(NotYet::Untrusted));
    assert_eq!(judged(keeper(&new, &[&old, &new]), PROJECTION), Err(NotYet::Untrusted));
    assert_eq!(judged(keeper(&old, &[&old, &new]), Duration::ZERO), Ok(()));
    present.take(keeper(&old, &[&old, &new]));
    assert_eq!(present.may_give_way_to(&keeper(&new, &[&old, &new]), Duration::from_secs(1), now), Err(NotYet::TooYoung));
    assert_eq!(present.may_give_way_to(&keeper(&new, &[&new]), PROJECTION, now), Err(NotYet::RootDropped));
    assert_eq!(present.may_give_way_to(&keeper(&new, &[&old, &new]), PROJECTION, now), Ok(()));
    present.take(keeper(&new, &[&old, &new]));
    assert!(present.is(&given(&new, &[&old, &new])) && !present.is(&given(&new, &[&new, &old])));
    // Then the order, which has certificates renewed, and the old root.
    assert_eq!(present.may_give_way_to(&keeper(&new, &[&new, &old]), Duration::ZERO, now), Ok(()));
    assert_eq!(present.may_give_way_to(&keeper(&new, &[&new]), Duration::ZERO, now), Ok(()));
}

#[test]
fn an_authority_that_agents_were_not_told_of_is_said_to_be_another() {
    let now = SystemTime::now();
    let (told, other) = (make_root(now).unwrap(), make_root(now).unwrap());
    let keeper = Keeper::given(given(&other, &[&other]), now).unwrap();
    assert!(keeper.is_trusted_by(std::slice::from_ref(&other.certificate), now).is_ok());
    let error = keeper.is_trusted_by(std::slice::from_ref(&told.certificate), now).unwrap_err().to_string();
    assert!(error.contains("begin anew"), "{error}");
}
