//! The objects that a mesh is configured by, each already converted and judged alone; [`crate::snapshot`] joins them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::BackendTrafficPolicy;
use crate::gateway::RouteObject;
use crate::limit::RateLimit;
use crate::policy::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use crate::service::NamespacedName;
use crate::service_entry::ServiceEntry;
use crate::settings::MeshSettings;
use crate::traffic::DestinationRule;
use crate::virtual_service::VirtualService;
use crate::workload::{Canonical, WorkloadUid};

/// Kinds of object that the mesh reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// `v1`
    Namespace,
    /// `v1`
    Node,
    /// `v1`
    ServiceAccount,
    /// `v1`
    Pod,
    /// `v1`
    Service,
    /// `discovery.k8s.io/v1`
    EndpointSlice,
    /// `security.istio.io/v1` and `v1beta1`
    PeerAuthentication,
    /// `security.istio.io/v1` and `v1beta1`
    AuthorizationPolicy,
    /// `security.istio.io/v1` and `v1beta1`
    RequestAuthentication,
    /// `nodemesh.dev/v1alpha1`
    Mesh,
    /// `gateway.networking.k8s.io/v1`
    HttpRoute,
    /// `gateway.networking.k8s.io/v1`
    GrpcRoute,
    /// `gateway.networking.k8s.io/v1`, `v1alpha3` and `v1alpha2`
    TlsRoute,
    /// `gateway.networking.k8s.io/v1` and `v1alpha2`
    TcpRoute,
    /// `networking.istio.io/v1`, `v1beta1` and `v1alpha3`
    VirtualService,
    /// `networking.istio.io/v1`, `v1beta1` and `v1alpha3`
    DestinationRule,
    /// `networking.istio.io/v1`, `v1beta1` and `v1alpha3`
    ServiceEntry,
    /// `nodemesh.dev/v1alpha1`
    RateLimit,
    /// `gateway.networking.x-k8s.io/v1alpha1`
    XBackendTrafficPolicy,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 19] = [
        Kind::Namespace,
        Kind::Node,
        Kind::ServiceAccount,
        Kind::Pod,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::PeerAuthentication,
        Kind::AuthorizationPolicy,
        Kind::RequestAuthentication,
        Kind::Mesh,
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::TlsRoute,
        Kind::TcpRoute,
        Kind::VirtualService,
        Kind::DestinationRule,
        Kind::ServiceEntry,
        Kind::RateLimit,
        Kind::XBackendTrafficPolicy,
    ];

    /// From `kind` alone, for documents of which nothing else could be read.
    pub fn from_name(kind: &str) -> Option<Kind> {
        Some(match kind {
            "Namespace" => Kind::Namespace,
            "Node" => Kind::Node,
            "ServiceAccount" => Kind::ServiceAccount,
            "Pod" => Kind::Pod,
            "Service" => Kind::Service,
            "EndpointSlice" => Kind::EndpointSlice,
            "PeerAuthentication" => Kind::PeerAuthentication,
            "AuthorizationPolicy" => Kind::AuthorizationPolicy,
            "RequestAuthentication" => Kind::RequestAuthentication,
            "Mesh" => Kind::Mesh,
            "HTTPRoute" => Kind::HttpRoute,
            "GRPCRoute" => Kind::GrpcRoute,
            "TLSRoute" => Kind::TlsRoute,
            "TCPRoute" => Kind::TcpRoute,
            "VirtualService" => Kind::VirtualService,
            "DestinationRule" => Kind::DestinationRule,
            "ServiceEntry" => Kind::ServiceEntry,
            "RateLimit" => Kind::RateLimit,
            "XBackendTrafficPolicy" => Kind::XBackendTrafficPolicy,
            _ => return None,
        })
    }

    /// The `apiVersion`s in which the kind is read.
    pub fn api_versions(self) -> &'static [&'static str] {
        match self {
            Kind::Namespace | Kind::Node | Kind::ServiceAccount | Kind::Pod | Kind::Service => &["v1"],
            Kind::EndpointSlice => &["discovery.k8s.io/v1"],
            Kind::PeerAuthentication | Kind::AuthorizationPolicy | Kind::RequestAuthentication => {
                &["security.istio.io/v1", "security.istio.io/v1beta1"]
            }
            Kind::Mesh | Kind::RateLimit => &["nodemesh.dev/v1alpha1"],
            Kind::XBackendTrafficPolicy => &["gateway.networking.x-k8s.io/v1alpha1"],
            Kind::HttpRoute | Kind::GrpcRoute => &["gateway.networking.k8s.io/v1"],
            Kind::TlsRoute => &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha3", "gateway.networking.k8s.io/v1alpha2"],
            Kind::TcpRoute => &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"],
            Kind::VirtualService | Kind::DestinationRule | Kind::ServiceEntry => {
                &["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"]
            }
        }
    }

    /// Whether objects of the kind belong to a namespace.
    pub fn namespaced(self) -> bool {
        !matches!(self, Kind::Namespace | Kind::Node | Kind::Mesh)
    }

    /// Whether an object of the kind restricts who may talk to whom, so that one not understood must not be taken for absent.
    pub fn is_security(self) -> bool {
        matches!(self, Kind::PeerAuthentication | Kind::AuthorizationPolicy | Kind::RequestAuthentication)
    }

    /// Whether Kubernetes itself defines the kind; the others are CustomResourceDefinitions that may be absent.
    pub fn is_builtin(self) -> bool {
        matches!(self, Kind::Namespace | Kind::Node | Kind::ServiceAccount | Kind::Pod | Kind::Service | Kind::EndpointSlice)
    }

    /// `kind`, as objects spell it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Namespace => "Namespace",
            Kind::Node => "Node",
            Kind::ServiceAccount => "ServiceAccount",
            Kind::Pod => "Pod",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::PeerAuthentication => "PeerAuthentication",
            Kind::AuthorizationPolicy => "AuthorizationPolicy",
            Kind::RequestAuthentication => "RequestAuthentication",
            Kind::Mesh => "Mesh",
            Kind::HttpRoute => "HTTPRoute",
            Kind::GrpcRoute => "GRPCRoute",
            Kind::TlsRoute => "TLSRoute",
            Kind::TcpRoute => "TCPRoute",
            Kind::VirtualService => "VirtualService",
            Kind::DestinationRule => "DestinationRule",
            Kind::ServiceEntry => "ServiceEntry",
            Kind::RateLimit => "RateLimit",
            Kind::XBackendTrafficPolicy => "XBackendTrafficPolicy",
        }
    }
}

/// Names an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for kinds without.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind.name(), self.name)
        } else {
            write!(f, "{} {}/{}", self.kind.name(), self.namespace, self.name)
        }
    }
}

/// An object that was understood. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    /// A namespace.
    Namespace(Arc<NamespaceObject>),
    /// A node.
    Node(Arc<Node>),
    /// A service account; only its name matters.
    ServiceAccount(NamespacedName),
    /// A pod.
    Pod(Arc<PodObject>),
    /// A Service.
    Service(Arc<ServiceObject>),
    /// Endpoints of a Service.
    EndpointSlice(Arc<EndpointSliceObject>),
    /// Whether plaintext is accepted.
    PeerAuthentication(Arc<PeerAuthentication>),
    /// Who may talk to whom.
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    /// Whose tokens are believed.
    RequestAuthentication(Arc<RequestAuthentication>),
    /// Mesh-wide settings.
    Mesh {
        /// Its name: only [`crate::settings::MESH_NAME`] counts.
        name: Arc<str>,
        /// The settings.
        settings: Arc<MeshSettings>,
    },
    /// A route of the Gateway API.
    Route(Arc<RouteObject>),
    /// Istio's routes.
    VirtualService(Arc<VirtualService>),
    /// How clients talk to a host.
    DestinationRule(Arc<DestinationRule>),
    /// Hosts that are no Services.
    ServiceEntry(Arc<ServiceEntry>),
    /// How many requests a workload takes.
    RateLimit(Arc<RateLimit>),
    /// How requests to a Service are treated by whatever route.
    BackendTrafficPolicy(Arc<BackendTrafficPolicy>),
}

/// What a label or annotation that switches something says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Word {
    /// It is absent.
    #[default]
    Unsaid,
    /// `enabled`.
    Enabled,
    /// `disabled`.
    Disabled,
    /// Present, but neither.
    Nonsense,
}

impl Word {
    /// Reads a value of `nodemesh.dev/mesh`.
    pub fn parse(value: Option<&str>) -> Word {
        match value {
            None => Word::Unsaid,
            Some("enabled") => Word::Enabled,
            Some("disabled") => Word::Disabled,
            Some(_) => Word::Nonsense,
        }
    }

    /// Whether a pod is in the mesh, by its own word and its namespace's.
    ///
    /// The pod's word wins. A word that is nonsense was meant to say something: then the other's clear word holds, and where there is
    /// none the pod is in the mesh, since dropping out of it in silence is what must not happen.
    pub fn enrolled(pod: Word, namespace: Word) -> bool {
        match (pod, namespace) {
            (Word::Enabled, _) => true,
            (Word::Disabled, _) => false,
            (Word::Unsaid | Word::Nonsense, Word::Enabled) => true,
            (Word::Unsaid | Word::Nonsense, Word::Disabled) => false,
            (Word::Nonsense, _) | (_, Word::Nonsense) => true,
            (Word::Unsaid, Word::Unsaid) => false,
        }
    }
}

/// What the mesh reads of a Namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceObject {
    /// Its name.
    pub name: Arc<str>,
    /// Label `nodemesh.dev/mesh`.
    pub mesh: Word,
    /// Label or annotation `nodemesh.dev/same-node: encrypt`.
    pub encrypt_same_node: bool,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its addresses (`InternalIP` and `ExternalIP`).
    pub addresses: Vec<IpAddr>,
    /// Label `topology.kubernetes.io/region`, or empty.
    pub region: Arc<str>,
    /// Label `topology.kubernetes.io/zone`, or empty.
    pub zone: Arc<str>,
}

/// What the mesh reads of a Pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodObject {
    /// Unique while it lives.
    pub uid: WorkloadUid,
    /// Its name.
    pub name: NamespacedName,
    /// `spec.serviceAccountName`, `default` if unset.
    pub service_account: Arc<str>,
    /// `spec.nodeName`, or empty.
    pub node: Arc<str>,
    /// `status.podIPs`, or `status.podIP`.
    pub addresses: Vec<IpAddr>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// Annotation `nodemesh.dev/netns`.
    pub netns: Option<PathBuf>,
    /// Label `nodemesh.dev/mesh`.
    pub mesh: Word,
    /// Its labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Names that metrics carry.
    pub canonical: Canonical,
    /// Phase `Succeeded` or `Failed`: its address may belong to another by now.
    pub finished: bool,
    /// Deletion has begun.
    pub terminating: bool,
    /// Not kept from serving by phase or condition `Ready`.
    pub ready: bool,
    /// Named TCP ports of its containers.
    pub ports: BTreeMap<String, u16>,
    /// `metadata.creationTimestamp`, seconds since 1970, if given.
    pub created: Option<i64>,
    /// Why it could not be understood in full: if it is in the mesh, nothing may reach it or leave it.
    pub refused: Option<Arc<str>>,
}

/// What the mesh reads of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceObject {
    /// Its name.
    pub name: NamespacedName,
    /// Its cluster IPs; empty for a headless one.
    pub addresses: Vec<IpAddr>,
    /// Labels of its pods; empty if somebody else writes its endpoints.
    pub selector: BTreeMap<String, String>,
    /// Its TCP ports.
    pub ports: Vec<ServicePortObject>,
    /// Endpoints count before they are ready.
    pub publish_not_ready: bool,
    /// `metadata.creationTimestamp`, seconds since 1970, if given.
    pub created: Option<i64>,
}

/// A TCP port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePortObject {
    /// The Service's port.
    pub port: u16,
    /// Its name, may be empty.
    pub name: Arc<str>,
    /// `appProtocol`, or empty.
    pub app_protocol: Arc<str>,
    /// The pods' port.
    pub target: TargetPort,
}

/// A pod's port as a Service names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By the name of a container's port.
    Name(String),
}

/// What the mesh reads of an EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSliceObject {
    /// Its name.
    pub name: NamespacedName,
    /// Name of the Service, in its own namespace (label `kubernetes.io/service-name`).
    pub service: Arc<str>,
    /// Its TCP ports: name and number; no number means every port.
    pub ports: Vec<(Arc<str>, Option<u16>)>,
    /// Its endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// An endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SliceEndpoint {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// May it be called.
    pub ready: bool,
    /// Name of the pod, in the slice's namespace.
    pub pod: Option<Arc<str>>,
}

impl SliceEndpoint {
    /// The addresses with a port.
    pub fn at(&self, port: u16) -> impl Iterator<Item = SocketAddr> {
        self.addresses.iter().map(move |ip| SocketAddr::new(*ip, port))
    }
}
