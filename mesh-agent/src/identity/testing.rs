//! An authority in memory and a clock that follows tokio's, for tests.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_model::identity::Identity;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer as Signer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use tonic::Code;

use super::issuer::{IssueError, IssuedChain, Issuer, Issuing};
use crate::link::LinkError;
use crate::ops::clock::Clock;

pub(super) const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
pub(super) const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

pub(super) fn id(text: &str) -> Identity {
    text.parse().unwrap()
}

/// A fixed moment.
pub(super) fn moment() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Stands at [`moment`] when made and goes as tokio's (paused) clock goes.
pub(super) struct TokioClock {
    start: tokio::time::Instant,
    /// Seconds by which the time of day has been set ahead.
    pub(super) ahead: AtomicI64,
}

impl TokioClock {
    pub(super) fn new() -> Arc<TokioClock> {
        Arc::new(TokioClock { start: tokio::time::Instant::now(), ahead: AtomicI64::new(0) })
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn wall(&self) -> SystemTime {
        let now = moment() + self.start.elapsed();
        let ahead = self.ahead.load(Ordering::Relaxed);
        let by = Duration::from_secs(ahead.unsigned_abs());
        if ahead < 0 { now - by } else { now + by }
    }
}

/// A root that signs by itself.
pub(super) struct Authority {
    pub(super) signer: Signer<'static, KeyPair>,
    pub(super) root: CertificateDer<'static>,
}

impl Authority {
    pub(super) fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap().der().clone();
        Authority { signer: Signer::new(params, key), root }
    }

    /// A certificate for a request, changed by `change` before it is signed.
    pub(super) fn sign(&self, csr: &str, from: SystemTime, to: SystemTime, change: impl FnOnce(&mut CertificateParams)) -> IssuedChain {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        request.params.not_before = from.into();
        request.params.not_after = to.into();
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut request.params);
        let certificate = request.signed_by(&self.signer).unwrap();
        IssuedChain { certificates: vec![certificate.der().clone()], roots: vec![self.root.clone()] }
    }
}

pub(super) fn names(params: &mut CertificateParams, uris: &[&str]) {
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
}

/// Issues certificates of a lifetime, each after a delay, and fails where it is told to.
pub(super) struct TestIssuer {
    pub(super) authority: Authority,
    pub(super) lifetime: Duration,
    pub(super) delay: Duration,
    pub(super) clock: Arc<TokioClock>,
    pub(super) asked: AtomicUsize,
    pub(super) under_way: AtomicUsize,
    pub(super) most: AtomicUsize,
    /// What to do with the next requests; issue when empty.
    pub(super) script: Mutex<VecDeque<Do>>,
    /// What to do when the script is over.
    pub(super) then: Mutex<Do>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Do {
    Issue,
    Refuse,
    Hang,
    /// Issue for another identity.
    Mistake,
}

impl TestIssuer {
    pub(super) fn new(lifetime: Duration) -> TestIssuer {
        TestIssuer {
            authority: Authority::new("test"),
            lifetime,
            delay: Duration::from_millis(10),
            clock: TokioClock::new(),
            asked: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            script: Mutex::default(),
            then: Mutex::new(Do::Issue),
        }
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    async fn serve(&self, csr: &str) -> Result<IssuedChain, IssueError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let now = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        tokio::time::sleep(self.delay).await;
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        let what = self.script.lock().pop_front().unwrap_or(*self.then.lock());
        let now = self.clock.wall();
        let sign =
            |change: &dyn Fn(&mut CertificateParams)| self.authority.sign(csr, now - Duration::from_secs(60), now + self.lifetime, change);
        match what {
            Do::Issue => Ok(sign(&|_| {})),
            Do::Mistake => Ok(sign(&|params| names(params, &["spiffe://cluster.local/ns/shop/sa/other"]))),
            Do::Refuse => Err(LinkError::Refused { address: "test".into(), code: Code::PermissionDenied, message: "no".into() }.into()),
            Do::Hang => std::future::pending().await,
        }
    }
}

impl Issuer for TestIssuer {
    fn issue<'a>(&'a self, _: &'a Identity, csr: &'a str) -> Issuing<'a> {
        Box::pin(self.serve(csr))
    }
}
