//! Values that live elsewhere, given as plain samples when a scrape asks for them.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_model::identity::Identity;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::Metrics;
use super::labels::put;

/// What kind of value a family has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It only rises. The text adds `_total` to the name.
    Counter,
    /// It may do as it likes.
    Gauge,
}

/// Takes the samples of one collector.
pub struct Samples<'a, 'b> {
    encoder: &'a mut DescriptorEncoder<'b>,
    result: fmt::Result,
}

impl<'b> Samples<'_, 'b> {
    /// Begins a family: `name` without `_total`, `help` a sentence. A family may be begun once in a scrape.
    pub fn family<'s>(&'s mut self, name: &'s str, help: &str, kind: Kind) -> FamilySamples<'s> {
        let metric = match kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
        };
        let Samples { encoder, result } = self;
        let encoder = match encoder.encode_descriptor(name, help, None, metric) {
            Ok(encoder) => Some(encoder),
            Err(error) => {
                *result = Err(error);
                None
            }
        };
        FamilySamples { encoder, kind, result }
    }
}

/// Takes the samples of one family.
pub struct FamilySamples<'s> {
    encoder: Option<MetricEncoder<'s>>,
    kind: Kind,
    result: &'s mut fmt::Result,
}

impl FamilySamples<'_> {
    /// One sample. Label sets within a family must differ, and their values must be bounded: nothing that a client chooses.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        if let Some(encoder) = &mut self.encoder
            && let Err(error) = write(encoder, self.kind, labels, value)
        {
            *self.result = Err(error);
        }
        self
    }
}

fn write(encoder: &mut MetricEncoder<'_>, kind: Kind, labels: &[(&str, &str)], value: f64) -> fmt::Result {
    fn value_of(encoder: &mut MetricEncoder<'_>, kind: Kind, value: f64) -> fmt::Result {
        match kind {
            Kind::Counter => encoder.encode_counter::<NoLabelSet, _, u64>(&value, None),
            Kind::Gauge => encoder.encode_gauge(&value),
        }
    }
    if labels.is_empty() {
        return value_of(encoder, kind, value);
    }
    value_of(&mut encoder.encode_family(&Pairs(labels))?, kind, value)
}

/// A certificate, as the metrics see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateSample {
    /// Whose.
    pub identity: Identity,
    /// End of its validity.
    pub not_after: SystemTime,
}

/// How full a kernel map is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapSample {
    /// Its name.
    pub map: &'static str,
    /// Entries in it.
    pub entries: u64,
    /// Entries it can hold.
    pub capacity: u64,
}

impl Metrics {
    /// Shows the certificates in use: asked at each scrape, one an identity.
    pub fn collect_certificates(&self, certificates: impl Fn() -> Vec<CertificateSample> + Send + Sync + 'static) {
        self.collect(move |samples| {
            let mut family = samples.family(
                "nodemesh_certificate_expiration_timestamp_seconds",
                "When the certificate in use for an identity ends, Unix time.",
                Kind::Gauge,
            );
            for certificate in certificates() {
                let seconds = certificate.not_after.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
                family.sample(&[("identity", &certificate.identity.to_string())], seconds);
            }
        });
    }

    /// Shows how full the kernel's maps are: asked at each scrape, one a map.
    pub fn collect_maps(&self, maps: impl Fn() -> Vec<MapSample> + Send + Sync + 'static) {
        self.collect(move |samples| {
            let all = maps();
            let mut family = samples.family("nodemesh_ebpf_map_entries", "Entries of a kernel map.", Kind::Gauge);
            for map in &all {
                family.sample(&[("map", map.map)], map.entries as f64);
            }
            let mut family = samples.family("nodemesh_ebpf_map_capacity", "Entries that a kernel map can hold.", Kind::Gauge);
            for map in &all {
                family.sample(&[("map", map.map)], map.capacity as f64);
            }
        });
    }
}

struct Pairs<'a>(&'a [(&'a str, &'a str)]);

impl EncodeLabelSet for Pairs<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        self.0.iter().try_for_each(|(name, value)| put(encoder, name, value))
    }
}

pub(super) struct Closure(pub(super) Box<dyn Fn(&mut Samples<'_, '_>) + Send + Sync>);

impl fmt::Debug for Closure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closure")
    }
}

impl Collector for Closure {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut samples = Samples { encoder: &mut encoder, result: Ok(()) };
        (self.0)(&mut samples);
        samples.result
    }
}
