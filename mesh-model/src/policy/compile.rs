//! AuthorizationPolicies → the program of [`mesh_common::policy`].
//!
//! A rule becomes one row for each pair of a source and an operation, with its conditions added to each. What a row asks of the
//! identity is folded into one set, so a row has at most one identity clause.
//!
//! What a TCP connection does not show (HTTP fields, `remoteIpBlocks`, SNI) never widens: an ALLOW row that asks for it is left out,
//! since it cannot match; from a DENY row the question is left out, so that it matches on the rest.
//!
//! A policy may name the trust domain `cluster.local`, which Istio reads as "the mesh's own". Where the mesh's own has another name, it
//! is read so only where that makes the policy stricter (a DENY's positive fields, an ALLOW's `not` fields); elsewhere it stands for
//! itself.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv6Net};
use mesh_common::addr::Addr;
use mesh_common::policy::{
    ATOM_DESTINATION_CIDR, ATOM_IDENTITY, ATOM_PORT, ATOM_SOURCE_CIDR, ATOM_TRUE, Facts, HEADER_HAS_ALLOW, HEADER_HAS_DRY_ALLOW, Header,
    OP_DENY, OP_DRY_RUN, OP_END_CLAUSE, OP_END_ROW, OP_NEGATE, Op,
};
use mesh_common::verdict::{self, Decision};

use crate::identity::{Identity, TrustDomain};
use crate::policy::{
    Action, AuthorizationPolicy, Condition, EffectivePolicies, IdentityMatch, IdentityPattern, Operation, Rule, SetInterner, Source,
    StringMatch,
};
use crate::service::NamespacedName;

/// Istio's name for "the mesh's own trust domain".
pub const OWN_TRUST_DOMAIN: &str = "cluster.local";

/// What is in force for a workload. Equal values decide equally.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct CompiledPolicy {
    /// Length and flags.
    pub header: Header,
    /// The rows of DENY and ALLOW policies.
    pub ops: Vec<Op>,
    /// The rows of AUDIT policies, as ALLOW rows: what they match is logged, nothing else follows.
    pub audit: Vec<Op>,
    /// Policy number n is `names[n - 1]`.
    pub names: Vec<NamespacedName>,
    /// Numbers of the policies that could not be understood and deny for that reason, ascending.
    pub refused: Vec<u32>,
    /// The sets that `ops` and `audit` ask for, by number, ascending.
    pub sets: Vec<(u32, Arc<IdentityMatch>)>,
}

impl CompiledPolicy {
    /// Name of the policy with a number, `None` for 0 and for [`verdict::NO_POLICY`].
    pub fn name(&self, number: u32) -> Option<&NamespacedName> {
        self.names.get(usize::try_from(number.checked_sub(1)?).ok()?)
    }

    /// The decision, with the identity's membership found by its patterns.
    pub fn decide(&self, facts: &Facts, identity: Option<&Identity>) -> Decision {
        let asked = identity.filter(|_| !self.sets.is_empty());
        let caller = asked.map(|identity| (identity, identity.principal()));
        verdict::decide(&self.header, &self.ops, facts, |set| self.contains(set, caller.as_ref()))
    }

    /// Number of the first AUDIT policy that matches, 0 for none.
    pub fn audited(&self, facts: &Facts, identity: Option<&Identity>) -> u32 {
        if self.audit.is_empty() {
            return 0;
        }
        let caller = identity.map(|identity| (identity, identity.principal()));
        let header = Header { len: u32::try_from(self.audit.len()).unwrap_or(u32::MAX), flags: HEADER_HAS_ALLOW, ..Header::default() };
        verdict::decide(&header, &self.audit, facts, |set| self.contains(set, caller.as_ref())).policy
    }

    fn contains(&self, set: u32, caller: Option<&(&Identity, String)>) -> bool {
        let Some((identity, principal)) = caller else { return false };
        let found = self.sets.binary_search_by_key(&set, |(number, _)| *number).ok().and_then(|i| self.sets.get(i));
        found.is_some_and(|(_, patterns)| patterns.matches_principal(identity, principal))
    }
}

/// Compiles what is in force for a workload. The program has no bound on its length; the kernel has
/// ([`mesh_common::names::MAX_OPS`]).
pub fn compile(effective: &EffectivePolicies, interner: &mut SetInterner) -> CompiledPolicy {
    let mut compiled = CompiledPolicy::default();
    for (policy, number) in effective.policies.iter().zip(1u32..) {
        compiled.names.push(policy.name.clone());
        let (deny, audit) = match (policy.refused.is_some(), policy.action) {
            (_, Action::Audit) => (false, true),
            (true, _) | (false, Action::Deny) => (true, false),
            (false, Action::Allow) => {
                compiled.header.flags |= if policy.dry_run { HEADER_HAS_DRY_ALLOW } else { HEADER_HAS_ALLOW };
                (false, false)
            }
        };
        let mut row_flags = if deny { OP_DENY } else { 0 };
        // What only notes does so in dry run too.
        if policy.dry_run && !audit {
            row_flags |= OP_DRY_RUN;
        }
        if deny && policy.refused.is_some() {
            compiled.refused.push(number);
        }
        let mut compiler = Compiler { deny, trust_domain: &effective.trust_domain, interner, sets: &mut compiled.sets };
        let rows = compiler.rows(policy);
        let ops = if audit { &mut compiled.audit } else { &mut compiled.ops };
        for row in rows {
            emit(&row, number, row_flags, ops);
        }
    }
    compiled.sets.sort_by_key(|(number, _)| *number);
    compiled.sets.dedup_by_key(|(number, _)| *number);
    // More than u32::MAX ops do not fit in memory; were it so, everything would be walked, not nothing.
    compiled.header.len = u32::try_from(compiled.ops.len()).unwrap_or(u32::MAX);
    compiled
}

/// Disjunction of atoms, or its opposite. Only `atom`, `arg`, `addr` and `mask` of the ops are set.
struct Clause {
    negate: bool,
    atoms: Vec<Op>,
}

/// Conjunction of clauses; none matches everything.
type Row = Vec<Clause>;

struct Compiler<'a> {
    deny: bool,
    trust_domain: &'a TrustDomain,
    interner: &'a mut SetInterner,
    sets: &'a mut Vec<(u32, Arc<IdentityMatch>)>,
}

impl Compiler<'_> {
    fn rows(&mut self, policy: &AuthorizationPolicy) -> Vec<Row> {
        if policy.refused.is_some() {
            return if self.deny { vec![Row::new()] } else { Vec::new() };
        }
        let mut rows = Vec::new();
        for rule in &policy.rules {
            // An empty list is one alternative that always holds.
            let sources: Vec<Option<&Source>> = alternatives(&rule.from);
            let operations: Vec<Option<&Operation>> = alternatives(&rule.to);
            for source in &sources {
                for operation in &operations {
                    rows.extend(self.row(*source, *operation, rule));
                }
            }
        }
        rows
    }

    /// `None` for a row that can match no TCP connection.
    fn row(&mut self, source: Option<&Source>, operation: Option<&Operation>, rule: &Rule) -> Option<Row> {
        let http = source.is_some_and(Source::needs_http)
            || operation.is_some_and(Operation::needs_http)
            || rule.when.iter().any(|condition| matches!(condition, Condition::Http { .. }));
        if http && !self.deny {
            return None;
        }
        let mut row = Row::new();
        let mut all: Vec<Vec<IdentityPattern>> = Vec::new();
        let mut none: Vec<IdentityPattern> = Vec::new();
        if let Some(operation) = operation {
            push(&mut row, false, ports(&operation.ports));
            push(&mut row, true, ports(&operation.not_ports));
        }
        if let Some(source) = source {
            use IdentityPattern as P;
            let accounts = |names: &[NamespacedName]| names.iter().cloned().map(P::ServiceAccount).collect();
            for (positive, negative) in [
                (wrap(&source.principals, P::Principal), wrap(&source.not_principals, P::Principal)),
                (wrap(&source.namespaces, P::Namespace), wrap(&source.not_namespaces, P::Namespace)),
                (accounts(&source.service_accounts), accounts(&source.not_service_accounts)),
                (wrap(&source.trust_domains, P::TrustDomain), wrap(&source.not_trust_domains, P::TrustDomain)),
            ] {
                self.identity(positive, negative, &mut all, &mut none);
            }
            push(&mut row, false, ranges(ATOM_SOURCE_CIDR, &source.ip_blocks));
            push(&mut row, true, ranges(ATOM_SOURCE_CIDR, &source.not_ip_blocks));
        }
        for condition in &rule.when {
            match condition {
                Condition::SourceIp(values, not_values) => {
                    push(&mut row, false, ranges(ATOM_SOURCE_CIDR, values));
                    push(&mut row, true, ranges(ATOM_SOURCE_CIDR, not_values));
                }
                Condition::DestinationIp(values, not_values) => {
                    push(&mut row, false, ranges(ATOM_DESTINATION_CIDR, values));
                    push(&mut row, true, ranges(ATOM_DESTINATION_CIDR, not_values));
                }
                Condition::DestinationPort(values, not_values) => {
                    push(&mut row, false, ports(values));
                    push(&mut row, true, ports(not_values));
                }
                Condition::Identity(values, not_values) => self.identity(values.clone(), not_values.clone(), &mut all, &mut none),
                Condition::Http { .. } => {}
            }
        }
        // With a positive question the row needs an identity, and the negative ones can join its set. Without, an absent identity must
        // pass the negative ones: then their opposite is the set.
        if !all.is_empty() {
            let atom = self.set(IdentityMatch::new(all, none));
            push(&mut row, false, vec![atom]);
        } else if !none.is_empty() {
            let atom = self.set(IdentityMatch::new(vec![none], Vec::new()));
            push(&mut row, true, vec![atom]);
        }
        Some(row)
    }

    fn identity(
        &self,
        mut positive: Vec<IdentityPattern>,
        mut negative: Vec<IdentityPattern>,
        all: &mut Vec<Vec<IdentityPattern>>,
        none: &mut Vec<IdentityPattern>,
    ) {
        let stricter = if self.deny { &mut positive } else { &mut negative };
        let own: Vec<_> = stricter.iter().filter_map(|pattern| own_trust_domain(pattern, self.trust_domain)).collect();
        stricter.extend(own);
        if !positive.is_empty() {
            all.push(positive);
        }
        none.extend(negative);
    }

    fn set(&mut self, set: IdentityMatch) -> Op {
        let (number, shared) = self.interner.intern(set);
        self.sets.push((number, shared));
        Op { atom: ATOM_IDENTITY, arg: number, ..Op::default() }
    }
}

/// What a pattern says with the mesh's own trust domain in the place of [`OWN_TRUST_DOMAIN`]; `None` if it does not name that.
pub(super) fn own_trust_domain(pattern: &IdentityPattern, own: &TrustDomain) -> Option<IdentityPattern> {
    match pattern {
        IdentityPattern::Principal(p) => p.with_start(&format!("{OWN_TRUST_DOMAIN}/"), &format!("{own}/")).map(IdentityPattern::Principal),
        IdentityPattern::TrustDomain(StringMatch::Exact(name)) if **name == *OWN_TRUST_DOMAIN => {
            Some(IdentityPattern::TrustDomain(StringMatch::Exact(own.as_str().into())))
        }
        _ => None,
    }
}

fn alternatives<T>(list: &[T]) -> Vec<Option<&T>> {
    if list.is_empty() { vec![None] } else { list.iter().map(Some).collect() }
}

fn wrap(values: &[StringMatch], pattern: fn(StringMatch) -> IdentityPattern) -> Vec<IdentityPattern> {
    values.iter().cloned().map(pattern).collect()
}

fn push(row: &mut Row, negate: bool, atoms: Vec<Op>) {
    if !atoms.is_empty() {
        row.push(Clause { negate, atoms });
    }
}

fn ports(ports: &[u16]) -> Vec<Op> {
    ports.iter().map(|port| Op { atom: ATOM_PORT, arg: u32::from(*port), ..Op::default() }).collect()
}

/// The IPv4 addresses, as the kernel holds them: `::ffff:0:0/96`.
const MAPPED: u128 = 0xffff_0000_0000;
const MAPPED_PREFIX: u8 = 96;

/// Ranges over mapped addresses. An IPv6 range must hold no IPv4 address, though `::/0` contains `::ffff:0:0/96` by its bits: such a
/// range is cut into those that surround it, unless all of IPv4 is asked for beside it.
fn ranges(atom: u8, nets: &[IpNet]) -> Vec<Op> {
    let all_v4 = nets.iter().any(|net| matches!(net, IpNet::V4(v4) if v4.prefix_len() == 0));
    let mut ops = Vec::with_capacity(nets.len());
    let mut add = |addr: IpAddr, prefix: u8| ops.push(Op { atom, addr: Addr::from(addr), mask: Addr::mask(prefix), ..Op::default() });
    for net in nets {
        match net.trunc() {
            IpNet::V4(v4) => add(v4.addr().into(), MAPPED_PREFIX + v4.prefix_len()),
            IpNet::V6(v6) if all_v4 || !straddles(&v6) => add(v6.addr().into(), v6.prefix_len()),
            IpNet::V6(v6) => {
                for prefix in v6.prefix_len() + 1..=MAPPED_PREFIX {
                    // Same bits as the mapped range up to here, and the next one turned over.
                    let bit = 1u128 << (128 - u32::from(prefix));
                    add(Ipv6Addr::from((MAPPED ^ bit) & !(bit - 1)).into(), prefix);
                }
            }
        }
    }
    ops
}

/// Whether an IPv6 range is wider than `::ffff:0:0/96` and has it inside.
fn straddles(net: &Ipv6Net) -> bool {
    net.prefix_len() < MAPPED_PREFIX && net.contains(&Ipv6Addr::from(MAPPED))
}

fn emit(row: &Row, policy: u32, row_flags: u8, ops: &mut Vec<Op>) {
    let always = [Clause { negate: false, atoms: vec![Op { atom: ATOM_TRUE, ..Op::default() }] }];
    let clauses: &[Clause] = if row.is_empty() { &always } else { row };
    for clause in clauses {
        for atom in &clause.atoms {
            ops.push(Op { flags: row_flags, policy, ..*atom });
        }
        if let Some(last) = ops.last_mut() {
            last.flags |= OP_END_CLAUSE | if clause.negate { OP_NEGATE } else { 0 };
        }
    }
    if let Some(last) = ops.last_mut() {
        last.flags |= OP_END_ROW;
    }
}

#[cfg(test)]
mod tests;
