//! Every way a request can be refused: what the client is told, what is counted, who is to blame.

use mesh_model::identity::{Identity, ParseIdentityError, TrustDomain};
use tonic::{Code, Status};

use super::authority::AuthorityError;
use super::token_review::TokenRefusal;

/// Metadata of a refusal: its name, as the metrics have it.
pub const REASON: &str = "x-nodemesh-refusal";

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No `authorization` metadata.
    #[error("the request has no token: send \"authorization: Bearer <token>\"")]
    NoToken,
    /// It is not a bearer token, or not one that could be anybody's.
    #[error("the authorization is not of the form \"Bearer <token>\"")]
    TokenForm,
    /// It is nobody's.
    #[error("the token belongs to no node")]
    UnknownToken,
    /// There is nothing to compare it with.
    #[error("tokens cannot be judged at present: {0}")]
    NoAuthenticator(String),
    /// The API server, or its word about the agent's pod, speaks against it.
    #[error(transparent)]
    Token(#[from] TokenRefusal),
    /// `ImpersonatedIdentity` is no text.
    #[error("metadata.ImpersonatedIdentity is not a string")]
    Metadata,
    /// The request is no PKCS #10.
    #[error("csr cannot be read: {0}")]
    Csr(String),
    /// Its signature is not by its own key.
    #[error("csr: the signature does not fit the public key in it")]
    CsrSignature,
    /// Its key is of a kind or size that is not signed for.
    #[error("csr: {0}; use a key on P-256 or P-384, or RSA of 2048 to 8192 bits")]
    Key(String),
    /// It asks for more or other names than one SPIFFE ID.
    #[error("csr: {0}; ask for one URI and nothing else")]
    Names(String),
    /// Its name is no identity.
    #[error("not an identity: {0}")]
    NotAnIdentity(#[from] ParseIdentityError),
    /// It names an identity nowhere.
    #[error("neither the csr nor metadata.ImpersonatedIdentity names an identity")]
    NoIdentity,
    /// It names two.
    #[error("the csr asks for {csr}, metadata.ImpersonatedIdentity for {impersonated}")]
    TwoIdentities {
        /// In the request's names.
        csr: Box<Identity>,
        /// In the metadata.
        impersonated: Box<Identity>,
    },
    /// It is of another mesh.
    #[error("{identity} is not of the trust domain {trust_domain}")]
    TrustDomain {
        /// What was asked for.
        identity: Box<Identity>,
        /// Ours.
        trust_domain: TrustDomain,
    },
    /// No pod of the caller's node has it.
    #[error("no pod in the mesh with the identity {identity} runs on node {node}")]
    NotOnNode {
        /// What was asked for.
        identity: Box<Identity>,
        /// The caller.
        node: Box<str>,
    },
    /// It is not known yet which pods there are.
    #[error("the mesh's configuration has not been read yet; try again later")]
    NotRead,
    /// The node asks too often.
    #[error("node {0} asks more often than it may; try again later")]
    TooOften(Box<str>),
    /// Too many requests at once.
    #[error("too many requests at once; try again later")]
    Overloaded,
    /// The authority cannot sign.
    #[error("the authority cannot sign: {0}")]
    Authority(#[from] AuthorityError),
}

/// Whom a refusal points at, and so how loudly it is logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blame {
    /// The client.
    Client,
    /// This authority or its configuration.
    Authority,
}

impl Refusal {
    /// Its name in metrics and logs, its gRPC code, and whom it points at.
    pub fn meaning(&self) -> (&'static str, Code, Blame) {
        use Blame::{Authority, Client};
        match self {
            Refusal::NoToken => ("no_token", Code::Unauthenticated, Client),
            Refusal::TokenForm => ("token_form", Code::Unauthenticated, Client),
            Refusal::UnknownToken => ("unknown_token", Code::Unauthenticated, Client),
            Refusal::NoAuthenticator(_) => ("no_authenticator", Code::Unavailable, Authority),
            Refusal::Token(refusal) => match refusal {
                TokenRefusal::Form => ("token_form", Code::Unauthenticated, Client),
                TokenRefusal::Audience(_) => ("token_audience", Code::Unauthenticated, Client),
                TokenRefusal::NotAgent { .. } => ("not_the_agent", Code::PermissionDenied, Client),
                TokenRefusal::Expired => ("token_expired", Code::Unauthenticated, Client),
                TokenRefusal::Rejected(_) => ("token_rejected", Code::Unauthenticated, Client),
                TokenRefusal::Unbound => ("token_unbound", Code::Unauthenticated, Client),
                TokenRefusal::Pod { .. } => ("agent_pod", Code::Unauthenticated, Client),
                TokenRefusal::Unavailable(_) => ("unavailable", Code::Unavailable, Authority),
            },
            Refusal::NotRead => ("not_read", Code::Unavailable, Authority),
            Refusal::Metadata => ("metadata", Code::InvalidArgument, Client),
            Refusal::Csr(_) => ("csr", Code::InvalidArgument, Client),
            Refusal::CsrSignature => ("csr_signature", Code::InvalidArgument, Client),
            Refusal::Key(_) => ("key", Code::InvalidArgument, Client),
            Refusal::Names(_) => ("names", Code::InvalidArgument, Client),
            Refusal::NotAnIdentity(_) => ("not_an_identity", Code::InvalidArgument, Client),
            Refusal::NoIdentity => ("no_identity", Code::InvalidArgument, Client),
            Refusal::TwoIdentities { .. } => ("two_identities", Code::InvalidArgument, Client),
            Refusal::TrustDomain { .. } => ("trust_domain", Code::PermissionDenied, Client),
            Refusal::NotOnNode { .. } => ("not_on_node", Code::PermissionDenied, Client),
            Refusal::TooOften(_) => ("too_often", Code::ResourceExhausted, Client),
            Refusal::Overloaded => ("overloaded", Code::ResourceExhausted, Authority),
            Refusal::Authority(_) => ("authority", Code::Internal, Authority),
        }
    }

    /// Its name in metrics and logs.
    pub fn reason(&self) -> &'static str {
        self.meaning().0
    }

    /// What the client gets.
    pub fn status(&self) -> Status {
        let (reason, code, _) = self.meaning();
        let mut status = Status::new(code, self.to_string());
        status.metadata_mut().insert(REASON, tonic::metadata::MetadataValue::from_static(reason));
        status
    }
}
